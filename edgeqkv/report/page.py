"""The report as one HTML file: no script, nothing from the network, and whatever came from a record is escaped."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from edgeqkv.report.content import Content, Section, Table
from edgeqkv.report.plots import capacity_plot, decode_plot, memory_plot

# Belt and braces: should something slip through, the browser neither runs nor fetches it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(content: Content) -> str:
    style = (files("edgeqkv.report") / "page.css").read_text(encoding="utf-8")
    body = [f"<p class=kind>edgeqkv: memory and latency</p><h1>{escape(content.verdict)}</h1>"]
    body += [_section(section, f"s{i}", content) for i, section in enumerate(content.sections)]
    if len(content.sections) > 1:
        body.append(f"<section><h2>Devices</h2>{_table(content.devices)}</section>")
    if content.failures.rows:
        body.append(f"<section class=failures><h2>What could not be measured</h2>{_table(content.failures)}</section>")
    body.append(f"<section><h2>How it was measured</h2>{_table(content.method, 'facts')}<p>{escape(_HOW)}</p></section>")
    body.append(f"<section><details><summary>Every number</summary>{_table(content.raw, 'raw')}</details></section>")
    return (
        "<!doctype html>\n"
        f'<html lang=en><head><meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=color-scheme content="light dark">'
        f"<title>edgeqkv report</title><style>{style}</style></head>\n<body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


_HOW = (
    "Each bundle runs in a process of its own; every round visits all of them before it repeats. Weights in the memory plot "
    "are what the files take, cache is the filled rows, rest is what is left of the measured peak: the runtime, its "
    "activations and its copies of weights. Speed ratios are of round medians, with a 99 % interval from Student's t over the "
    "rounds; a difference is called one when the whole interval lies beyond 3 %."
)


def _section(section: Section, prefix: str, content: Content) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p class=note>{escape(note)}</p>" for note in section.notes]
    sentences = [sentence for sentence in section.verdicts if sentence != content.verdict]
    if sentences:
        parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")
    parts.append(_table(section.savings))
    if not section.emulated:
        plots = [
            memory_plot(section.records, f"{prefix}m"),
            decode_plot(section.records, f"{prefix}d"),
            capacity_plot(section.records, content.budget, f"{prefix}c"),
        ]
        parts.append("<div class=plots>" + "".join(f"<figure>{plot}</figure>" for plot in plots if plot) + "</div>")
        parts += [_table(section.memory), _table(section.speed)]
    else:
        ids = tuple((r.variant, r.kernel, " ".join(map(str, r.greedy_ids))) for r in section.records)
        parts.append(_table(Table(("variant", "kernel", "ids after 1 2 3"), ids)))
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table, kind: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(_row(row) for row in table.rows)
    return f'<div class="scroll {kind}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(row: Sequence[str]) -> str:
    return "<tr>" + f"<th scope=row>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
