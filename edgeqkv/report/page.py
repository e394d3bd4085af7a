"""The report as one HTML file, and a drawing as an SVG file: no script, nothing from the network, and all text is escaped."""

import functools
import re
from importlib.resources import files
from typing import Any

from edgeqkv.bench.printable import printable
from edgeqkv.errors import require
from edgeqkv.report.content import Content
from edgeqkv.report.drawing import Drawing


def page(content: Content) -> str:
    style = _read("drawing.css") + _read("page.css")
    return _rendered("page.html.j2", content=content, style=style, svg=_element)


def svg(drawing: Drawing) -> str:
    """A file that stands alone; its colours follow the reader's light or dark setting."""
    return _rendered("drawing.svg.j2", drawing=drawing, prefix="p", style=_read("drawing.css"), alone=True)


def _element(drawing: Drawing, prefix: str) -> Any:
    """For a page, which has the styles. Ids begin with ``prefix``, which no other drawing there may have."""
    markup = require("markupsafe", "report").Markup
    return markup(_rendered("drawing.svg.j2", drawing=drawing, prefix=prefix, style="", alone=False))


def _rendered(template: str, **values: Any) -> str:
    text: str = _templates().get_template(template).render(**values)
    return text


@functools.cache
def _templates() -> Any:
    jinja2 = require("jinja2", "report")
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _harmless(value: object) -> object:
    """Text without control characters, and without a line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|MiB|ms\b)", "\N{NO-BREAK SPACE}", printable(value)) if type(value) is str else value


def _read(name: str) -> str:
    return (files("edgeqkv.report") / name).read_text(encoding="utf-8")
