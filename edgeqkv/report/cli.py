"""``edgeqkv report``: results files to one page that decides."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqkv.errors import EdgeQKVError


def report(
    results: Annotated[list[Path], typer.Argument(help="Files that edgeqkv bench --results wrote.")],
    out: Annotated[
        Path, typer.Option("--out", help="A page (.html), Markdown for a pull request (.md), or one picture (.svg).")
    ],
    ram_budget: Annotated[str | None, typer.Option(help="Draw this line, and say which capacity fits: 512MiB, 2GiB.")] = None,
    note: Annotated[
        list[str] | None, typer.Option(help="A sentence to put below the first one, of what readers must know; once for each.")
    ] = None,
) -> None:
    """Turn measurements into one self-contained page, with the gain in one sentence at its top."""
    from edgeqkv.atomic import atomic_write
    from edgeqkv.bench.options import parse_size
    from edgeqkv.bench.printable import printable
    from edgeqkv.bench.results import read_results
    from edgeqkv.report.content import content
    from edgeqkv.report.markdown import markdown

    if out.suffix not in (".html", ".md", ".svg"):
        raise EdgeQKVError(f"--out {out} ends in neither .html nor .md nor .svg; name one of these")
    if not out.resolve().parent.is_dir():
        raise EdgeQKVError(f"cannot write {out}: the folder {out.parent} does not exist")
    records, failures = read_results(results)
    if not records and not failures:
        raise EdgeQKVError(f"{', '.join(map(str, results))}: there are no records; edgeqkv bench --results writes them")
    found = content(records, failures, parse_size(ram_budget, "--ram-budget"), note or ())
    if out.suffix == ".md":
        text = markdown(found)
    else:
        from edgeqkv.report.page import page, svg
        from edgeqkv.report.picture import picture

        text = page(found) if out.suffix == ".html" else svg(picture(found))
    atomic_write(out, text.encode())
    print(f"{out}: {printable(found.verdict)}")
