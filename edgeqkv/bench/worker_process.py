"""A running worker, on whatever device: asked one thing at a time, as :mod:`edgeqkv.bench.protocol` says."""

import json
import subprocess
import tempfile
from abc import ABC, abstractmethod
from typing import TypeVar

import msgspec

from edgeqkv.bench.device import Device, reason
from edgeqkv.bench.record import AppEntry
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.strict import from_json

T = TypeVar("T", bound=msgspec.Struct)
Argument = str | int | tuple[int, ...] | None
OUT_OF_MEMORY = (-9, 137)  # killed by signal 9, as subprocess and a shell report it


class MeasuredProcess(ABC):
    """Where it runs is what differs. Idle, it waits for the next request and takes no processor time."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ask(self, kind: type[T], do: str, **arguments: Argument) -> T:
        """The answer to one request, which is of ``kind``."""
        line = self._exchange(json.dumps({"do": do, **arguments}))
        if not line.endswith("\n"):
            raise EdgeQKVError(f"the measuring process of {self.name} ended during {do!r}: {self._end()}")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise EdgeQKVError(f"the measuring process of {self.name} answered {do!r} with {line.strip()[:80]!r}") from error
        if isinstance(answer, dict) and "error" in answer:
            lacks = answer.get("exit_code") == MissingPackage.exit_code
            raise (MissingPackage if lacks else EdgeQKVError)(f"{self.name}: {answer['error']}")
        return from_json(kind, answer, f"the measuring process of {self.name} answered {do!r} wrongly")

    def app(self) -> AppEntry | None:
        """The app that it is, with what Android says of its memory now; None outside an app."""
        return None

    @abstractmethod
    def _exchange(self, request: str) -> str:
        """The line that comes back; cut off or empty when the process has ended."""

    @abstractmethod
    def _end(self) -> str:
        """Why it has ended, as far as that is known."""

    @abstractmethod
    def kill(self) -> None:
        """At once, from any thread: what waits for an answer gets none."""

    @abstractmethod
    def close(self) -> None:
        """Let it end."""


class WorkerProcess(MeasuredProcess):
    """Started by the shell script ``script`` on ``device``; waits on a pipe."""

    def __init__(self, device: Device, script: str, name: str) -> None:
        super().__init__(name)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # A session of its own, so that Ctrl-C reaches only the process that shows the progress.
        self._process = subprocess.Popen(
            [*device.transport, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )

    def _exchange(self, request: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except OSError:
            return ""

    def kill(self) -> None:
        self._process.kill()

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            return "the connection does not answer"
        self._stderr.seek(0)
        said = reason(self._stderr.read(), code)
        return "it was killed, probably for want of memory" if code in OUT_OF_MEMORY else said

    def close(self) -> None:
        """Close its stdin, at which it ends."""
        try:
            self._process.communicate(timeout=5)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.communicate()
        self._stderr.close()
