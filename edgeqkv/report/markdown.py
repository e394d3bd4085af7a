"""The report for a pull request: the verdict, what is behind it, and no pictures."""

import re

from edgeqkv.bench.tables import Table
from edgeqkv.report.content import Content
from edgeqkv.tables import table


def markdown(content: Content) -> str:
    parts = ["# " + _text(content.verdict)]
    for section in content.sections:
        parts += ["## " + _text(section.title), *(f"**Note:** {_text(note)}" for note in section.notes)]
        parts += ["\n".join(f"- {_text(sentence)}" for sentence in section.verdicts)] if section.verdicts else []
        tables = [section.savings] if section.emulated else [section.savings, section.memory, section.speed]
        parts += [_table(one) for one in tables]
    if content.failures.rows:
        parts += ["## What could not be measured", _table(content.failures)]
    parts += ["## How it was measured", _table(content.method)]
    return "\n\n".join(parts) + "\n"


def _table(one: Table) -> str:
    return table([_text(cell) for cell in one.header], [[_text(cell) for cell in row] for row in one.rows])


def _text(value: str) -> str:
    """As text, whatever a device called itself: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_\[\]<>|#!&~])", r"\\\1", " ".join(value.split()))
