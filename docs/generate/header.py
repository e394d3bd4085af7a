"""The reference of the C interface, from the comments of its header."""

import re
from pathlib import Path

NAME = re.compile(r"\b(edgeqkv_\w+(?:\(\))?|EDGEQKV_\w+|[A-Z]{2,}_[A-Z_]+)(?!\w)")
SECTION = re.compile(r"^/\* -{2,} (.+?) -{2,} \*/$", re.MULTILINE)


def header_page(header: Path) -> str:
    text = header.read_text()
    introduction, _, rest = text.partition("*/")
    rest = rest[rest.index('extern "C"') :]
    parts = SECTION.split(rest)
    page = [f"# C: {header.name}", "", "This page is made from the header.", "", _prose(introduction.removeprefix("/*"))]
    for title, body in zip(["Errors and versions", *parts[1::2]], parts[0::2], strict=True):
        page += ["", f"## {title}", "", *_items(body)]
    return "\n".join(page) + "\n"


def _items(body: str) -> list[str]:
    out: list[str] = []
    lines = body.splitlines()
    i, comment = 0, ""
    while i < len(lines):
        line = lines[i]
        if line.startswith("/*"):
            stop = next(n for n in range(i, len(lines)) if lines[n].endswith("*/"))
            comment = "\n".join(lines[i : stop + 1]).removeprefix("/*").removesuffix("*/")
            i = stop + 1
        elif line.startswith(("EDGEQKV_EXPORT", "typedef", "enum")):
            block = "{" in line and not line.endswith("};")
            stop = next(n for n in range(i, len(lines)) if (lines[n].startswith("}") if block else lines[n].endswith(";")))
            code = "\n".join(lines[i : stop + 1])
            if name := _name(code):
                out += [f"### {name}", ""]
            if comment:
                out += [_prose(comment), ""]
            out += ["```c", re.sub(r"^EDGEQKV_EXPORT ", "", _aligned(code)), "```", ""]
            comment, i = "", stop + 1
        else:
            i += 1
    return out


def _name(code: str) -> str | None:
    """A function's, a struct's or a callback's; the constants of an enum have names of their own."""
    found = re.search(r"^\} (\w+);", code, re.MULTILINE) or re.search(r"\(\*(\w+)\)\(|\b(\w+)\(", code)
    return next(filter(None, found.groups())) if found and not code.startswith("enum") else None


def _aligned(code: str) -> str:
    """The lines of a prototype moved left by the width of the macro that is not shown."""
    first, *others = code.splitlines()
    if not first.startswith("EDGEQKV_EXPORT "):
        return code
    return "\n".join([first, *(line.removeprefix(" " * len("EDGEQKV_EXPORT ")) for line in others)])


def _prose(comment: str) -> str:
    """Comment to Markdown: stars off, indented lines are code, the word that opens a paragraph of rules is bold."""
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\*?\s*\n", comment.strip("\n")):
        lines = [re.sub(r"^ ?\* ?", "", line) for line in paragraph.splitlines()]
        if all(line.startswith("    ") for line in lines if line):
            out.append("```c\n" + "\n".join(line[4:] for line in lines) + "\n```")
        else:
            text = NAME.sub(r"`\1`", " ".join(line.strip() for line in lines))
            text = re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)
            out.append(re.sub(r"^(Errors|Threads|Ownership|Trust|Environment)\. ", r"**\1.** ", text.strip()))
    return "\n\n".join(out)
