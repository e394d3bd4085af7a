"""Commands one after the other, each in a process of its own, with the time that is left."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import typer

from edgeqkv.demo.script import Command
from edgeqkv.progress import note


def run_all(commands: Sequence[Command]) -> None:
    """Ends with the exit code of the first command that fails; it has said why."""
    wanted = [command for command in commands if command.makes is None or not command.makes.exists()]
    pace = Pace()
    for i, command in enumerate(wanted):
        if command.said:
            print(f"\n# {command.said}", flush=True)
        left = pace.left(wanted[i:])
        print(f"[{i + 1} of {len(wanted)}, {in_words(left)} left] edgeqkv {shlex.join(command.arguments)}", flush=True)
        start = time.monotonic()
        code = _run(command)
        if code:
            raise typer.Exit(code)
        if command.removes is not None:
            shutil.rmtree(command.removes)
        pace.took(command, time.monotonic() - start)


class Pace:
    """How fast this machine is beside the one that the commands' times are of, by those that it has run. Half a minute at that
    one's pace comes first, so that one short command does not decide."""

    def __init__(self) -> None:
        self._took = self._expected = 30.0

    def took(self, command: Command, seconds: float) -> None:
        self._took += seconds
        self._expected += command.seconds

    def left(self, commands: Sequence[Command]) -> float:
        """Seconds that these will take."""
        return sum(command.seconds for command in commands) * self._took / self._expected


def in_words(seconds: float) -> str:
    return f"about {round(seconds / 60)} min" if seconds >= 90 else f"about {max(1, round(seconds))} s"


def _run(command: Command) -> int:
    words = [sys.executable, "-P", "-m", "edgeqkv.cli", *command.arguments]
    try:
        if command.prints_to is None:
            return subprocess.run(words).returncode
        with command.prints_to.open("w") as file:
            return subprocess.run(words, stdout=file).returncode
    except KeyboardInterrupt:
        note("interrupted; the same command goes on, with what has been exported")
        raise typer.Exit(130) from None
