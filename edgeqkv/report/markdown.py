"""The report for a pull request: the sentence, the numbers, what is behind them, and no pictures."""

import re

from edgeqkv.bench.printable import printable
from edgeqkv.bench.tables import Table
from edgeqkv.report.content import Content, Section
from edgeqkv.tables import table


def markdown(content: Content) -> str:
    parts = ["# " + _text(content.verdict), *(f"**Note:** {_text(note)}" for note in content.notes)]
    for section in content.sections:
        parts += _section(section, content.verdict)
    if len(content.sections) > 1:
        parts += ["## Devices side by side", _table(content.devices)]
    if content.failures.rows:
        parts += ["## What could not be measured", _table(content.failures)]
    parts += ["## How it was measured", _table(content.method)]
    return "\n\n".join(parts) + "\n"


def _section(section: Section, verdict: str) -> list[str]:
    parts = ["## " + _text(section.title), *(f"**Note:** {_text(note)}" for note in section.notes)]
    if section.emulated:
        return [*parts, _table(section.ids)]
    if section.verdict and section.verdict != verdict:
        parts.append(f"**{_text(section.verdict)}**")
    if section.numbers:
        said = (
            f"- **{_text(n.value)}** {_text(n.title)}. {_text(n.sentence)} {_text(n.alike)}".rstrip() for n in section.numbers
        )
        parts.append("\n".join(said))
    parts += [_text(section.compared)] if section.compared else []
    parts += [_table(section.steps)] if len(section.steps.rows) > 2 else []
    return parts + [_table(one) for one in (section.savings, section.memory, section.speed)]


def _table(one: Table) -> str:
    return table([_text(cell) for cell in one.header], [[_text(cell) for cell in row] for row in one.rows])


def _text(value: str) -> str:
    """As text, whatever a device called itself: no markup, no HTML, one line, nothing that a terminal would obey."""
    return re.sub(r"([\\`*_\[\]<>|#!&~])", r"\\\1", " ".join(printable(value).split()))
