"""The JSON Schema of a line of a results file: ``python -m edgeqkv.bench.schema`` prints ``record.schema.json``."""

import json
from typing import Any

from edgeqkv.bench.record import SCHEMA, Failure, Record
from edgeqkv.strict import schema


def record_schema() -> dict[str, Any]:
    return schema(Record | Failure, f"edgeqkv bench record, version {SCHEMA}")


if __name__ == "__main__":
    print(json.dumps(record_schema(), indent=2))
