"""JSON Schema of dataclasses: ``python -m edgeqkv.bench.schema`` prints ``record.schema.json``."""

import dataclasses
import json
import types
import typing
from typing import Any

from edgeqkv.bench.record import SCHEMA, Failure, Record

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def record_schema() -> dict[str, Any]:
    """The schema of one line of a results file (JSON Schema, draft 2020-12)."""
    definitions: dict[str, Any] = {}
    either = [_schema(Record, definitions), _schema(Failure, definitions)]
    for name in ("Record", "Failure"):
        definitions[name]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"edgeqkv bench record, version {SCHEMA}",
        "oneOf": either,
        "$defs": definitions,
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # taken, should a class refer to itself
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        definitions[name] = {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
            "properties": {field: _schema(hints[field], definitions) for field in fields},
            "required": fields,
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    print(json.dumps(record_schema(), indent=2))
