"""A running worker, on whatever device: asked one thing at a time, one line of JSON each way."""

import json
import subprocess
import tempfile
from types import TracebackType
from typing import Any

from edgeqkv.bench.device import Device, reason
from edgeqkv.errors import EdgeQKVError, MissingPackage


class WorkerProcess:
    """Started by the shell script ``script`` on ``device``. Idle, it waits on a pipe and takes no processor time."""

    def __init__(self, device: Device, script: str, name: str) -> None:
        self.name = name
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

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):
            raise EdgeQKVError(f"the measuring process of {self.name} ended during {do!r}: {self._end()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise EdgeQKVError(f"the measuring process of {self.name} answered {do!r} with {line.strip()[:80]!r}") from error
        if "error" in answer:
            kind = MissingPackage if answer["exit_code"] == MissingPackage.exit_code else EdgeQKVError
            raise kind(f"{self.name}: {answer['error']}")
        return answer

    def kill(self) -> None:
        self._process.kill()

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            return "the connection does not answer"
        self._stderr.seek(0)
        said = reason(self._stderr.read(), code)
        return "it was killed, probably for want of memory" if code in (-9, 137) else said

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=5)  # closes its stdin, at which it ends
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.communicate()
        self._stderr.close()
