"""Where the worker runs. Today that is this machine; ssh and adb devices start the same worker elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.native import native_file

RUNNER = "runtimes/run/edgeqkv-run"


class WorkerProcess:
    """A worker with one bundle, asked one thing at a time. Idle, it waits on a pipe and takes no processor time."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        # A session of its own, so that Ctrl-C reaches only the process that shows the progress.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            reason = "it was killed, probably for want of memory" if code == -9 else f"exit code {code}"
            raise EdgeQKVError(f"the measuring process of {self.name} ended during {do!r}: {reason}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = MissingPackage if answer["exit_code"] == MissingPackage.exit_code else EdgeQKVError
            raise kind(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=5)  # closes its stdin, at which it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def start_worker(device: str, bundle: Path, native: bool = False) -> WorkerProcess:
    """A worker on ``device`` for ``bundle``; ``native`` is edgeqkv-run, else it is Python."""
    if device != "local":
        raise EdgeQKVError(f"unknown device {device!r}; this version measures on: local")
    if native:
        return WorkerProcess(str(bundle), [str(native_file(RUNNER)), "--worker"])
    # -P: the package that is installed, not an edgeqkv/ folder that happens to be in the current one.
    return WorkerProcess(str(bundle), [sys.executable, "-P", "-m", "edgeqkv.bench.worker"])
