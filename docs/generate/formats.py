"""The reference of the JSON formats, from the classes that read and write them."""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect

from edgeqkv.config import CONFIG_FORMAT, ModelConfig
from edgeqkv.manifest import FORMAT, Manifest
from edgeqkv.strict import schema, to_json

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def manifest_page() -> str:
    return _page(
        "Manifest: edgeqkv.json",
        f"`edgeqkv export` writes this file at the top of a bundle, and every runtime reads it first. This is format {FORMAT}. "
        "An unknown field, a missing field or a value outside its bounds is refused. Sizes are bytes.\n\n"
        "[manifest.schema.json](manifest.schema.json) is the JSON Schema (draft 2020-12). "
        "[Compatibility](../compatibility.md) says which versions read which formats.",
        [Manifest],
        "A bundle of the shipped Q-MQA model, with the lists of buffers and end points cut short (`…`)",
        _example_manifest(),
        stop={ModelConfig},
        ending="`config` is the [model configuration](config.md).",
    )


def config_page() -> str:
    example = (ROOT / "models/q-mqa/config.json").read_text()
    return _page(
        "Model configuration: config.json",
        f"A model folder has this file beside `model.safetensors`. This is format {CONFIG_FORMAT}. Every field is written out. "
        "The same object is the field `model.config` of a [manifest](manifest.md).",
        [ModelConfig],
        "`models/q-mqa/config.json`",
        example,
    )


def record_page() -> str:
    from edgeqkv.bench.record import SCHEMA, Failure, Record

    return _page(
        "Results: one record a line",
        "`edgeqkv bench --results FILE` appends one JSON object a line: a measurement, or a failure that says what could not "
        f"be measured. This is schema {SCHEMA}. Times are in seconds, sizes in bytes. What could not be read is null, never 0."
        "\n\n"
        "[record.schema.json](record.schema.json) is the JSON Schema (draft 2020-12).",
        [Record, Failure],
        "A measurement. **The numbers are made up**; they show the form only",
        _example_record(),
        stop={ModelConfig},
        ending="`model` is the [model configuration](config.md).",
    )


def schemas() -> dict[str, str]:
    """The published JSON Schemas, by file name."""
    from edgeqkv.bench.schema import record_schema

    found = {
        "manifest.schema.json": schema(Manifest, f"edgeqkv manifest, format {FORMAT}"),
        "record.schema.json": record_schema(),
    }
    return {name: msgspec.json.format(msgspec.json.encode(one), indent=2).decode() for name, one in found.items()}


# -- classes to tables --------------------------------------------------------------------------------------------


def _page(
    title: str, introduction: str, roots: list[type], example: str, text: str, stop: set[type] = frozenset(), ending: str = ""
) -> str:  # type: ignore[assignment]
    sections = [_section(kind) for kind in _reached(roots, stop)]
    parts = [f"# {title}", introduction, *sections, ending, "## Example", f"{example}:", f"```json\n{text.strip()}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def _reached(roots: list[type], stop: set[type]) -> list[type]:
    """The classes of an object and of all inside it, each once, in the order of reading."""
    found: list[type] = []
    waiting = list(roots)
    while waiting:
        kind = waiting.pop(0)
        if kind not in found and kind not in stop:
            found.append(kind)
            waiting = [*_classes(kind), *waiting]
    return found


def _classes(kind: type) -> list[type]:
    return [each for field in msgspec.inspect.type_info(kind).fields for each in _inside(field.type)]  # type: ignore[union-attr]


def _inside(info: Any) -> Iterator[type]:
    if isinstance(info, msgspec.inspect.StructType):
        yield info.cls
    for name in ("item_type", "value_type"):
        if hasattr(info, name):
            yield from _inside(getattr(info, name))
    for each in (*getattr(info, "types", ()), *(getattr(info, "item_types", ()))):
        yield from _inside(each)


def _section(kind: type) -> str:
    info: Any = msgspec.inspect.type_info(kind)
    rows = ["| field | type |", "|---|---|"]
    if info.tag is not None:
        rows.append(f'| `{info.tag_field}` | `"{info.tag}"` |')
    for field in info.fields:
        optional = "" if field.required else ", may be absent"
        rows.append(f"| `{field.encode_name}` | {_type(field.type)}{optional} |")
    return f"## {kind.__name__}\n\n{_docstring(kind)}\n\n" + "\n".join(rows)


def _type(info: Any) -> str:
    i = msgspec.inspect
    if isinstance(info, i.StructType):
        return f"[{info.cls.__name__}]({_place(info.cls)})"
    if isinstance(info, i.UnionType):
        return " or ".join(map(_type, info.types))
    if isinstance(info, i.LiteralType):
        return " or ".join(f"`{json.dumps(value)}`" for value in info.values)
    if isinstance(info, i.DictType):
        return f"object of {_type(info.value_type)}"
    if isinstance(info, i.VarTupleType | i.ListType):
        return f"list of {_type(info.item_type)}"
    if isinstance(info, i.TupleType):
        return "list of " + ", ".join(map(_type, info.item_types))
    names = {i.IntType: "integer", i.FloatType: "number", i.StrType: "string", i.BoolType: "boolean", i.NoneType: "null"}
    name = names.get(type(info), "any value")
    bounds = [f"{sign} {getattr(info, limit):g}" for limit, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
              if getattr(info, limit, None) is not None]  # fmt: skip
    return name + (f" {', '.join(bounds)}" if bounds else "")


def _place(kind: type) -> str:
    """Configuration classes have a page of their own."""
    page = "config.md" if kind is ModelConfig else ""
    return f"{page}#{kind.__name__.lower()}"


def _docstring(kind: type) -> str:
    own = kind.__dict__.get("__doc__")
    return ROLE.sub(r"`\1`", inspect.cleandoc(own)) if own else ""


# -- examples -----------------------------------------------------------------------------------------------------


def _example_manifest() -> str:
    import tempfile

    import edgeqkv

    with tempfile.TemporaryDirectory() as folder:
        manifest = edgeqkv.export(ROOT / "models/q-mqa", Path(folder) / "bundle", cache="int8")
    value: Any = json.loads(to_json(manifest))
    for artifact in value["artifacts"]:
        artifact["cache"]["buffers"][1:] = ["…"]
        artifact["cache"]["static_scales"] = {name: ["…"] for name in list(artifact["cache"]["static_scales"])[:1]}
        for entry in artifact["entry_points"]:
            entry["inputs"][3:], entry["outputs"][2:] = ["…"], ["…"]
            entry["aliases"] = dict(list(entry["aliases"].items())[:1])
    value["artifacts"][1:] = ["…"]
    template = value["text"]["chat_template"]
    value["text"]["chat_template"] = template and f"{template[:40]}…"
    return to_json(value)


def _example_record() -> str:
    """From the tests, which keep it valid."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from records import made_record
    finally:
        sys.path.remove(str(ROOT / "tests"))
    return to_json(made_record("Q-MQA"))
