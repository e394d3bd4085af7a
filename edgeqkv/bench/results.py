"""Results files: one record a line, only ever appended to; a later line of the same run and cell replaces an earlier one."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeqkv.bench.record import SCHEMA, Failure, Record
from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import from_json
from edgeqkv.text_file import read_text


def json_line(record: Record | Failure) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False)


def append(path: Path, records: Iterable[Record | Failure]) -> None:
    lines = "".join(json_line(record) + "\n" for record in records)
    try:
        with path.open("a+b") as file:
            file.seek(0)
            held = file.read()
            file.truncate(held.rfind(b"\n") + 1)  # what a killed program left of its last line
            file.write(lines.encode())
    except OSError as error:
        raise EdgeQKVError(f"cannot write {path}: {error.strerror}") from error


def read_results(paths: Sequence[Path]) -> tuple[list[Record], list[Failure]]:
    """All records, each cell of a run once, in the order of the files; a last line that was cut off is left out."""
    records: dict[tuple[str, str], Record] = {}
    failures: list[Failure] = []
    for path in paths:
        lines = read_text(path).split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                data = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):  # no newline after it: the program was killed while it wrote
                    continue
                raise EdgeQKVError(f"{where} is not JSON ({error.msg}); edgeqkv bench --results writes such files") from error
            version = data.get("schema") if isinstance(data, dict) else None
            if version != SCHEMA:
                raise EdgeQKVError(f"{where}: expected a record of schema {SCHEMA}, found {version!r}; measure again")
            if data.get("kind") == "failure":
                failures.append(from_json(Failure, data, where))
            else:
                record = from_json(Record, data, where)
                records[record.run, record.cell] = record
    return list(records.values()), failures
