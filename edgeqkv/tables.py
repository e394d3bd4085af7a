"""Tables as aligned Markdown: readable in a terminal, and pasted into a page as they are."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column is left-aligned, the others right-aligned. None shows as "not measured"."""
    cells = [[str(c) for c in header]] + [["not measured" if c is None else str(c) for c in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def mib(count: float | None, digits: int = 1) -> str | None:
    """Bytes as MiB (2^20)."""
    return None if count is None else f"{count / 2**20:,.{digits}f}"
