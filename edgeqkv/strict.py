"""Frozen dataclasses to JSON and back, refusing what the dataclass does not name.

Model configurations and bundle manifests are contracts between programs, so a misspelt field, a missing one or a
value of the wrong type must be an error that names it, never a silent default.
"""

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgeqkv.errors import EdgeQKVError
from edgeqkv.text_file import read_text

T = TypeVar("T")


def to_json(value: Any) -> str:
    """JSON text of a dataclass, indented, every field written out; a list of numbers stays on one line."""
    text = json.dumps(dataclasses.asdict(value), indent=2, ensure_ascii=False)
    return re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file; :class:`EdgeQKVError` when it is missing or is not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise EdgeQKVError(f"{path} is not a JSON file: {error}") from error


def from_json(cls: type[T], data: Any, where: str) -> T:
    """Build dataclass ``cls`` from parsed JSON. ``where`` opens the error sentence ("models/x/config.json")."""
    if not isinstance(data, dict):
        raise EdgeQKVError(f"{where}: expected an object, found {_shown(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            raise EdgeQKVError(f"{where}: unknown field {name!r}; known are {', '.join(fields)}")
    for name in fields:
        if name not in data:
            raise EdgeQKVError(f"{where}: the field {name!r} is missing")
    values = {name: _convert(hints[name], data[name], f"{where}: {name}") for name in fields}
    try:
        return cls(**values)
    except EdgeQKVError as error:  # the class refused values that do not fit together
        raise EdgeQKVError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise EdgeQKVError(f"{where}: {_shown(value)} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        exact = [a for a in kinds if isinstance(a, type) and type(value) is a]
        return _convert((exact or kinds)[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise EdgeQKVError(f"{where}: expected a list, found {_shown(value)}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise EdgeQKVError(f"{where}: expected an object, found {_shown(value)}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise EdgeQKVError(f"{where}: expected {kind.__name__}, found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
