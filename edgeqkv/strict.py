"""JSON that is a contract: read into msgspec structs, and refused where a field is unknown, missing or of a wrong type.

Model configurations, bundle manifests and records are read by other programs too, so a misspelt field must be an error that
names it, never a silent default. The JSON Schemas of them come from the same classes (:func:`schema`).
"""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from edgeqkv.errors import EdgeQKVError
from edgeqkv.limits import JSON_BYTES

T = TypeVar("T")


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is written to JSON and read back."""


def to_json(value: Any) -> str:
    """JSON text, indented, every field written out; a list of numbers stays on one line."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def read_json(path: Path) -> Any:
    """The content of a JSON file as plain values; :class:`EdgeQKVError` when it is missing, too large or is not JSON."""
    return parse_json(read_bounded(path), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Plain values; :class:`EdgeQKVError` says what is not JSON, or which key stands twice in an object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise EdgeQKVError(f"{where}: the field {twice!r} stands there twice")
        return found

    try:
        msgspec.json.decode(data)  # stricter than Python's: UTF-8, no NaN, numbers that fit
        return json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise EdgeQKVError(f"{where} is not a JSON file: {error}") from error


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Build ``kind`` from plain values. ``where`` opens the error sentence ("models/x/config.json")."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise EdgeQKVError(f"{where}: {_in_our_words(kind, data, str(error))}") from error
    except EdgeQKVError as error:  # the class refused values that do not fit together
        raise EdgeQKVError(f"{where}: {error}") from error


def read_bounded(path: Path, largest: int = JSON_BYTES) -> bytes:
    """The bytes of a regular file of at most ``largest``; anything else (a pipe, a device, a directory) is refused unread."""
    try:
        if not path.exists():
            raise EdgeQKVError(f"{path} does not exist")
        if not path.is_file():
            raise EdgeQKVError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(largest + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise EdgeQKVError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > largest:
        raise EdgeQKVError(f"{path} has {size} bytes, and at most {largest} can be right")
    return data


def schema(kind: Any, title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a struct, or of a union of structs."""
    out = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **out}


def _in_our_words(kind: Any, data: Any, message: str) -> str:
    """msgspec's "Object contains unknown field `x` - at `$.cache`" as a sentence that begins with the place."""
    text, _, place = message.partition(" - at `")
    place = place.rstrip("`").removeprefix("$").removeprefix(".")
    text = re.sub(r"^Object contains unknown field `(.*)`$", r"unknown field '\1'", text)
    text = re.sub(r"^Object missing required field `(.*)`$", r"the field '\1' is missing", text)
    text = re.sub(r"^Invalid (?:enum )?value (.*)$", r"\1 is not one of ", text)
    if text.endswith(" is not one of "):
        text += ", ".join(map(repr, _choices(kind, place)))
    if text.startswith("Expected `int` "):
        bounds = [(t.ge, t.le) for t in _types_at(kind, place) if isinstance(t, msgspec.inspect.IntType)]
        if bounds and None not in bounds[0] and (value := _value_at(data, place)) is not None:
            return f"{place} is {value}, outside {bounds[0][0]} to {bounds[0][1]}"
    text = text.replace("`", "")
    return f"{place}: {text}" if place else text


def _choices(kind: Any, place: str) -> list[Any]:
    """What may stand at a place where few values may: a Literal's, or the tags of a union of structs."""
    return sorted(v for each in _types_at(kind, place) if isinstance(each, msgspec.inspect.LiteralType) for v in each.values)


def _types_at(kind: Any, place: str) -> list[Any]:
    """What may stand at a place ("artifacts[0].kernel")."""
    found = [msgspec.inspect.type_info(kind)]
    for part in _parts(place):
        inside: list[Any] = []
        for each in _alternatives(found):
            if part.startswith("["):
                inside += [each.value_type if hasattr(each, "value_type") else each.item_type]
            elif isinstance(each, msgspec.inspect.StructType):
                inside += [msgspec.inspect.LiteralType((each.tag,))] if part == each.tag_field else []
                inside += [field.type for field in each.fields if field.encode_name == part]
        found = inside
    return _alternatives(found)


def _value_at(data: Any, place: str) -> int | None:
    """The whole number at a place; None where the place is not spelled out ("row[...]")."""
    for part in _parts(place):
        if not part.startswith("["):
            data = data[part]
        elif part[1:-1].isdigit():
            data = data[int(part[1:-1])]
        else:
            return None
    return data if type(data) is int else None


def _parts(place: str) -> list[str]:
    return re.findall(r"\[.*?\]|[^.\[]+", place)


def _alternatives(types: list[Any]) -> list[Any]:
    return [a for t in types for a in (t.types if isinstance(t, msgspec.inspect.UnionType) else (t,))]
