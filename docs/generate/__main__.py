"""Puts the pages of the site together: ``python docs/generate FOLDER``.

The folder gets the guides of docs/, the pages that are made from code, those of the runtimes and of the project, and every file
of the repository that a page links to. A guide links to ``../runtimes/onnx/README.md`` as it lies in the
repository, so that the same link works in an editor and on a code host. On the site that file is a page too: Markdown as it is,
source code as a listing.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from commands import commands_page
from formats import config_page, manifest_page, record_page, schemas
from header import header_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<rest>#[^)]*)?(?=\))")
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.MULTILINE | re.DOTALL)
LANGUAGES = {
    ".h": "c", ".c": "c", ".cc": "cpp", ".py": "python", ".kt": "kotlin", ".kts": "kotlin", ".swift": "swift", ".sh": "bash",
    ".json": "json", ".toml": "toml", ".yml": "yaml", ".xml": "xml",
}  # fmt: skip
IMAGES = {".svg", ".png", ".jpg"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def site_pages(out: Path) -> None:
    """Writes all pages under ``out``, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    texts = {f"docs/{path.relative_to(DOCS).as_posix()}": path.read_text() for path in DOCS.rglob("*.md")}
    texts |= {f"docs/reference/{name}": text for name, text in generated().items()}
    others = [*ROOT.glob("*.md"), *ROOT.glob("runtimes/*/README.md")]
    texts |= {path.relative_to(ROOT).as_posix(): path.read_text() for path in others if path != ROOT / "README.md"}
    waiting, pages = list(texts), {}
    while waiting:
        place = waiting.pop()
        page, text = site_page(place), texts[place]
        pages[page] = _outside_fences(text, lambda part, place=place, page=page: _moved(part, place, page))
        for target in sorted(_links(place, text)):
            if target not in texts and not target.startswith("docs/"):
                content = copied(target)
                if content is None:
                    _copy(ROOT / target, out / target)
                else:
                    texts[target] = content
                    waiting.append(target)
    for page, text in pages.items():
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(text)
    for path in DOCS.rglob("*"):
        if path.suffix in {*IMAGES, ".css"}:
            _copy(path, out / path.relative_to(DOCS))
    for name, text in schemas().items():
        (out / "reference" / name).write_text(text)


def generated() -> dict[str, str]:
    """The pages of docs/reference that are made from code."""
    return {
        "cli.md": commands_page(),
        "c.md": header_page(ROOT / "runtimes/native/include/edgeqkv.h"),
        "manifest.md": manifest_page(),
        "config.md": config_page(),
        "record.md": record_page(),
    }


def site_page(place: str) -> str:
    """Where a file or folder of the repository is on the site."""
    path = ROOT / place
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    if path.is_dir():
        return f"{place}/README.md" if (path / "README.md").is_file() else f"{place}/index.md"
    return place if path.suffix in {".md", *IMAGES} else f"{place}.md"


def copied(place: str) -> str | None:
    """What the page of a file or folder outside docs/ says; None for an image, which is copied."""
    path = ROOT / place
    if path.suffix in IMAGES:
        return None
    if path.is_dir():
        if (path / "README.md").is_file():
            return (path / "README.md").read_text()
        names = [each.name for each in sorted(path.iterdir()) if each.suffix in {".md", *LANGUAGES} - {".json"}]
        listed = "\n".join(f"- [{name}]({name})" for name in names)
        return f"{NOT_SEARCHED}# {place}/\n\n{listed}\n"
    text = path.read_text()
    return (
        text if path.suffix == ".md" else f"{NOT_SEARCHED}# {place}\n\n~~~~{LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~\n"
    )


def _links(place: str, text: str) -> set[str]:
    """The files and folders that a page links to; a link that leads nowhere ends it all."""
    found = {target for link in LINK.finditer(FENCE.sub("", text)) if (target := _target(place, link["path"])) is not None}
    for target in found:
        made = target.startswith("docs/reference/")  # from code
        if target.startswith((".", "build")) or not (made or (ROOT / target).exists()):
            raise SystemExit(f"{place} links to {target}, which is not there")
    return found


def _target(place: str, link: str) -> str | None:
    """Where a relative link of the file ``place`` leads, from the top of the repository."""
    folder = PurePosixPath(place) if (ROOT / place).is_dir() else PurePosixPath(place).parent
    return None if link.startswith("/") else os.path.normpath(folder / link)


def _moved(text: str, place: str, page: str) -> str:
    """The links of a page, as they are on the site."""

    def moved(link: re.Match[str]) -> str:
        target = _target(place, link["path"])
        return (
            link[0] if target is None else os.path.relpath(site_page(target), PurePosixPath(page).parent) + (link["rest"] or "")
        )

    return LINK.sub(moved, text)


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    out, last = [], 0
    for fence in FENCE.finditer(text):
        out += [change(text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*out, change(text[last:])])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/generate FOLDER")
    site_pages(Path(sys.argv[1]))
