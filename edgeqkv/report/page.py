"""The report as one HTML file: no script, nothing from the network, and whatever came from a record is escaped."""

from importlib.resources import files

from edgeqkv.errors import require
from edgeqkv.report.content import Content, Section
from edgeqkv.report.plots import capacity_plot, decode_plot, memory_plot

TEMPLATE, STYLE = "page.html.j2", "page.css"


def page(content: Content) -> str:
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(_read(TEMPLATE))
    plots = [_plots(section, f"s{i}", content.budget) for i, section in enumerate(content.sections)]
    text: str = template.render(content=content, plots=plots, style=_read(STYLE))
    return text


def _plots(section: Section, prefix: str, budget: int | None) -> list[str]:
    """SVG elements; a run that was not timed has none."""
    if section.emulated:
        return []
    drawn = [
        memory_plot(section.records, f"{prefix}m"),
        decode_plot(section.records, f"{prefix}d"),
        capacity_plot(section.records, budget, f"{prefix}c"),
    ]
    return [plot for plot in drawn if plot]


def _read(name: str) -> str:
    return (files("edgeqkv.report") / name).read_text(encoding="utf-8")
