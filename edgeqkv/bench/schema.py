"""The JSON Schema of a line of a results file: ``python -m edgeqkv.bench.schema`` prints ``record.schema.json``."""

import json
from typing import Any

import msgspec

from edgeqkv.bench.record import SCHEMA, Failure, Record
from edgeqkv.strict import schema


def record_schema() -> dict[str, Any]:
    """As JSON has it: a tuple that is a default is a list."""
    title = f"edgeqkv bench record, version {SCHEMA}"
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema(Record | Failure, title)))
    return found


if __name__ == "__main__":
    print(json.dumps(record_schema(), indent=2))
