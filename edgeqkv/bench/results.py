"""Results files: one record a line, only ever appended to; a later line of the same run and cell replaces an earlier one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgeqkv.bench.record import SCHEMA, Failure, Record
from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import from_json, parse_json
from edgeqkv.text_file import read_text


def json_line(record: Record | Failure) -> str:
    return msgspec.json.encode(record).decode()


def check_writable(path: Path) -> None:
    """Refuse a results file that cannot be appended to, or that is another file: before minutes of measuring, not after."""
    if not path.resolve().parent.is_dir():
        raise EdgeQKVError(f"cannot write {path}: the folder {path.parent} does not exist")
    new = not path.exists()
    try:
        with path.open("a+b") as file:
            file.seek(0)
            begins = file.read(1)
        if new:
            path.unlink()
    except OSError as error:
        raise EdgeQKVError(f"cannot write {path}: {error.strerror}") from error
    if begins not in (b"", b"{"):
        raise EdgeQKVError(f"{path} holds something else than records, to which it would be appended; name another file")


def append(path: Path, records: Iterable[Record | Failure]) -> None:
    left = "".join(json_line(record) + "\n" for record in records).encode()
    try:
        with path.open("a+b", buffering=0) as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)  # what a killed program left of its last line
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise EdgeQKVError(f"cannot write {path}: {error.strerror}; the records before are kept") from error


def read_results(paths: Sequence[Path]) -> tuple[list[Record], list[Failure]]:
    """All records, each cell of a run once, in the order of the files; a last line that was cut off is left out."""
    records: dict[tuple[str, str], Record] = {}
    failures: list[Failure] = []
    for path in paths:
        lines = read_text(path).split("\n")
        for number, line in enumerate(lines, 1):
            found = _read_line(line, f"{path}, line {number}", cut_off=number == len(lines))
            if isinstance(found, Record):
                records[found.run, found.cell] = found
            elif found is not None:
                failures.append(found)
    return list(records.values()), failures


def _read_line(line: str, where: str, cut_off: bool) -> Record | Failure | None:
    """None: nothing is there. A line without a newline may be ``cut_off``: the program was killed while it wrote."""
    if not line.strip():
        return None
    try:
        data = parse_json(line, where)
    except EdgeQKVError as error:
        if cut_off:
            return None
        raise EdgeQKVError(f"{error}; edgeqkv bench --results writes such files, a JSON object a line") from error
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise EdgeQKVError(f"{where}: expected a record of schema {SCHEMA}, found {version!r:.80}; measure again")
    found: Record | Failure = from_json(Record | Failure, data, where)  # type: ignore[arg-type]  # a union is no class
    return found
