"""Runs tests/session_cases.json, whose "about" explains its words, on any implementation of a session."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.errors import CacheFull, CheckFailed, EdgeQKVError, MissingPackage
from edgeqkv.sampling import Sampler

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())["cases"]
KINDS = {CacheFull: "full", CheckFailed: "check", MissingPackage: "missing", EdgeQKVError: "input"}


def run_case(case: dict[str, Any], open_session: Callable[[], Any], chunk: int, token_count: int, folder: Path) -> None:
    """One case. ``open_session`` opens another session on one bundle each time; its class has the methods and properties of
    :class:`edgeqkv.session.Session`. ``folder`` is for files."""
    Run(open_session, chunk, token_count, folder).all(case["steps"])


class Run:
    def __init__(self, open_session: Callable[[], Any], chunk: int, token_count: int, folder: Path) -> None:
        self.open_session, self.folder = open_session, folder
        self.sessions = {"main": open_session()}
        self.names = {"capacity": self.sessions["main"].capacity, "chunk": chunk, "token_count": token_count}
        self.results: dict[str, Any] = {}

    def all(self, steps: list[dict[str, Any]]) -> None:
        try:
            for place, step in enumerate(steps):
                self.check(step, f"step {place + 1}: {json.dumps(step)}")
        finally:
            for session in self.sessions.values():
                session.close()

    def check(self, step: dict[str, Any], where: str) -> None:
        kind, sentence = None, ""
        try:
            result = self.do(step)
        except EdgeQKVError as error:
            kind, sentence = KINDS[type(error)], str(error)
        assert kind == step.get("error"), f"{where}: {sentence or 'no error'}"
        if kind:
            return
        if "as" in step:
            self.results[step["as"]] = result
        if "equals" in step:
            wanted = step["equals"]
            self.same(result, self.results[wanted] if isinstance(wanted, str) else self.ids(wanted), where)
        if "length" in step:
            assert len(result) == step["length"], where
        if "is" in step:
            wanted = step["is"]
            known = self.ids(wanted) if isinstance(wanted, list) else None if wanted is None else self.number(wanted)
            self.same(result, known, where)

    def same(self, found: Any, wanted: Any, where: str) -> None:
        if isinstance(found, np.ndarray):
            assert isinstance(wanted, np.ndarray), where
            np.testing.assert_array_equal(found, wanted, where)
        else:
            assert found == wanted, f"{where}: found {found}, not {wanted}"

    def do(self, step: dict[str, Any]) -> Any:
        what, session, ids = step["do"], self.sessions[step.get("on", "main")], self.ids(step.get("ids", []))
        file = self.folder / step.get("file", "")
        if what in ("prefill", "feed"):
            return getattr(session, what)(ids).copy()
        if what == "step":
            return session.step(ids[0]).copy()
        if what == "generate":
            sampler = Sampler(**step["sampling"]) if "sampling" in step else None
            ends = self.ids(step["end_tokens"]) if "end_tokens" in step else None
            return [int(token) for token in session.generate(ids, sampler, step.get("limit"), end_tokens=ends)]
        if what in ("depth", "tokens", "logits"):
            value = getattr(session, what)
            return list(value) if what == "tokens" else value
        if what in ("save", "restore"):
            return getattr(session, what)(file)
        if what == "rewind":
            return session.rewind(self.number(step["depth"]))
        if what in ("reset", "close"):
            return getattr(session, what)()
        if what in ("open", "fork"):
            self.sessions[step["to"]] = self.open_session() if what == "open" else session.fork()
            return None
        if what == "concatenation":
            return ids
        data = bytearray(file.read_bytes())
        if what == "damage":
            data[step["byte"]] ^= 1
        else:
            assert what == "truncate", what
            del data[max(0, len(data) - step["bytes"]) :]
        return file.write_bytes(data)

    def number(self, value: int | str) -> int:
        if isinstance(value, int):
            return value
        terms = re.findall(r"([+-]?)(\w+)", value)
        return sum((-1 if sign == "-" else 1) * (self.names[word] if word in self.names else int(word)) for sign, word in terms)

    def ids(self, items: list[Any]) -> list[int]:
        out: list[int] = []
        for item in items:
            if not isinstance(item, dict):
                out.append(self.number(item))
            elif "from" in item:
                first = self.number(item["from"])
                out += [(first + i) % self.names["token_count"] for i in range(self.number(item["count"]))]
            else:
                known = self.results[item["of"]]
                if "at" in item:
                    out.append(known[item["at"]])
                elif "before" in item:
                    out += known[: known.index(known[item["before"]])] if item["before"] >= 0 else known[: item["before"]]
                else:
                    out += known
        return out
