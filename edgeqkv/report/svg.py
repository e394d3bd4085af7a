"""A drawing of matplotlib as an element of a page: colours by the page's CSS variables, ids that no other drawing has."""

from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def inline_svg(drawing: str, prefix: str, colours: dict[str, str]) -> str:
    """``colours`` maps each colour of the drawing, as #rrggbb, to what takes its place; ids begin with ``prefix``."""
    root = ElementTree.fromstring(drawing)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img"}
    _drop(root, "metadata")
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{prefix}-{element.attrib['id']}")
        if element.attrib.get(HREF, "").startswith("#"):
            element.set(HREF, f"#{prefix}-{element.attrib[HREF][1:]}")
        for name in ("clip-path", "fill", "stroke"):
            if name in element.attrib:
                element.set(name, _value(element.attrib[name], prefix, colours))
        if "style" in element.attrib:
            element.set("style", _style(element.attrib["style"], prefix, colours))
    return ElementTree.tostring(root, encoding="unicode")


def _style(style: str, prefix: str, colours: dict[str, str]) -> str:
    """A list of declarations, "fill: #ff0000; stroke: none"."""
    declarations = [declaration.partition(":") for declaration in style.split(";") if declaration.strip()]
    return "; ".join(f"{name.strip()}: {_value(value.strip(), prefix, colours)}" for name, _, value in declarations)


def _value(value: str, prefix: str, colours: dict[str, str]) -> str:
    if value.startswith("url(#"):
        return f"url(#{prefix}-{value.removeprefix('url(#')}"
    return colours.get(value, value)


def _drop(root: ElementTree.Element, name: str) -> None:
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{SVG}}}{name}"):
            parent.remove(child)
