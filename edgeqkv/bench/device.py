"""Devices: this machine, ssh and adb. Each is a command that runs one shell script there, and that is all they differ in.

Whatever becomes part of such a script goes through :func:`shlex.quote`. Files go through ``cat`` into a folder of our own.
"""

import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgeqkv.bench.printable import printable
from edgeqkv.bench.scratch import scratch_folder
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.files import file_sha256

FOLDER, MARK = "edgeqkv-bench", ".edgeqkv-bench"
SECONDS_TO_ANSWER = 60

# What ssh and adb say, and what to do about it.
_ADVICE = {
    "host key verification failed": "its host key is unknown or has changed; check it, and connect once by hand with ssh",
    "permission denied": "set up a key for it, then try by hand with ssh -o BatchMode=yes",
    "authoriz": "unlock it and allow USB debugging for this computer",
    "offline": "reconnect it, or adb reconnect",
    "not found": "see edgeqkv devices for what is connected",
    "no space left": "free some space, or remove what earlier runs sent with --clean",
}


@dataclass(frozen=True)
class Device:
    """``transport`` runs a shell script, its last argument, on the device. ``folder`` is ours there; None: nothing is sent.
    ``adb`` is the client's command for this device, where it is one of adb's."""

    name: str
    transport: tuple[str, ...]
    folder: str | None
    adb: tuple[str, ...] | None = None

    def run(self, script: str, what: str, source: Path | None = None, seconds: int | None = SECONDS_TO_ANSWER) -> str:
        """Its stdout; ``source`` is a file for its stdin; ``what`` says in an error what was being done."""
        try:
            with open(source or "/dev/null", "rb") as stdin:
                done = subprocess.run([*self.transport, script], stdin=stdin, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise EdgeQKVError(f"{self.name}: {what} took more than {seconds} s; is the device awake and reachable?") from error
        if done.returncode:
            raise EdgeQKVError(f"{self.name}: {what} failed: {reason(done.stderr, done.returncode)}")
        return done.stdout.decode(errors="replace")

    def send(self, files: Mapping[str, Path], to: str, progress: Callable[[str], None] = lambda name: None) -> str:
        """Put ``files`` (name there: file here) into the folder ``to`` of ours, and return its whole path.

        Each is compared by its sha256 after sending, and before: what is there already is not sent again.
        """
        assert self.folder is not None
        target = f"{self.folder}/{to}"
        digests = {name: file_sha256(path) for name, path in files.items()}
        present = self._present(target, list(files))
        missing = {name: path for name, path in files.items() if present.get(name) != digests[name]}
        if not missing:
            return target
        folders = {f"{target}/{name}".rpartition("/")[0] for name in missing}
        self.run(f"mkdir -p {shlex.join(sorted(folders))} && : > {shlex.quote(f'{self.folder}/{MARK}')}", "making its folder")
        self._check_room(sum(path.stat().st_size for path in missing.values()))
        for name, path in missing.items():
            progress(f"sending {name}")
            part = shlex.quote(f"{target}/{name}.{uuid.uuid4().hex[:8]}.part")
            mode = "chmod 700" if path.stat().st_mode & 0o100 else "chmod 600"
            final = shlex.quote(f"{target}/{name}")
            script = f"cat > {part} && {mode} {part} && mv {part} {final} || {{ rm -f {part}; exit 1; }}"
            self.run(script, f"sending {name}", path, None)
        present = self._present(target, list(missing))
        for name in missing:
            if present.get(name) != digests[name]:
                raise EdgeQKVError(
                    f"{self.name}: {name} did not arrive as it was sent; try again, or check the device's storage"
                )
        return target

    def clean(self) -> None:
        """Remove our folder, if it is one of ours."""
        if self.folder is not None:
            folder, mark = shlex.quote(self.folder), shlex.quote(f"{self.folder}/{MARK}")
            self.run(f"if [ -f {mark} ]; then rm -rf {folder}; fi", "cleaning up")

    def _present(self, target: str, names: Sequence[str]) -> dict[str, str]:
        script = f"cd {shlex.quote(target)} 2>/dev/null || exit 0; sha256sum {shlex.join(f'./{n}' for n in names)} 2>/dev/null"
        lines = self.run(f"{script}; true", "checking what it has", seconds=600).splitlines()
        found = [re.fullmatch(r"([0-9a-f]{64}) [ *]\./(.*)", line.strip()) for line in lines]
        return {match[2]: match[1] for match in found if match}

    def _check_room(self, need: int) -> None:
        fields = self.run(f"df -Pk {shlex.quote(str(self.folder))}", "asking for its free space").splitlines()[-1].split()
        free = int(fields[3]) * 1024 if len(fields) > 3 and fields[3].isdigit() else need
        if free < need:
            raise EdgeQKVError(
                f"{self.name}: {need / 2**20:,.1f} MiB have to be sent and {free / 2**20:,.1f} MiB are free; "
                "free some space, remove what earlier runs sent with --clean, or name another disk with --folder"
            )


@contextmanager
def connections(folder: str | None = None, ssh_config: Path | None = None) -> Iterator["Connections"]:
    """Opens devices; those of ssh are left at the end. ``folder`` is where ours is put on them, None: where each can write."""
    with scratch_folder() as sockets:
        opened = Connections(folder, ssh_config, sockets)
        try:
            yield opened
        finally:
            opened.close()


LOCAL = Device("local", ("sh", "-c"), None)


class Connections:
    """Opens devices by name, with what ssh needs to reuse a connection in the folder ``sockets``; see :func:`connections`."""

    def __init__(self, folder: str | None, ssh_config: Path | None, sockets: Path) -> None:
        self._parent, self._config, self._sockets = folder, ssh_config, sockets
        self._masters: list[list[str]] = []

    def open(self, name: str) -> Device:
        """``local``, ``ssh://user@host[:port]``, ``adb://SERIAL`` or ``adb://host:port``; connects, or says why not."""
        if name == "local":
            return LOCAL
        if name.startswith("ssh://"):
            return self._ssh(name)
        if name.startswith("adb://") and len(name) > len("adb://"):
            return self._adb(name)
        raise EdgeQKVError(f"unknown device {name!r}; use local, ssh://user@host[:port], adb://SERIAL or adb://host:port")

    def close(self) -> None:
        for master in self._masters:
            subprocess.run([*master, "-O", "exit"], capture_output=True)

    def _ssh(self, name: str) -> Device:
        try:
            url = urlsplit(name)
            host, port = url.hostname, url.port
        except ValueError:
            host, port = None, None
        if not host or host.startswith("-") or (url.username or "").startswith("-") or url.path.strip("/"):
            raise EdgeQKVError(f"{name!r} is not a device; write ssh://user@host or ssh://user@host:port")
        options = ["-F", str(self._config)] if self._config else []
        options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5"]
        options += ["-o", "ServerAliveCountMax=3", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
        options += ["-o", f"ControlPath={self._sockets}/%C", *(["-p", str(port)] if port else [])]
        target = f"{url.username}@{host}" if url.username else host
        base = [_tool("ssh", "openssh-client"), *options]
        device = Device(name, (*base, target, "--"), None)
        home = device.run('printf %s "$HOME"', "connecting")
        self._masters.append([*base, target])
        return Device(name, device.transport, f"{self._parent or home}/{FOLDER}")

    def _adb(self, name: str) -> Device:
        adb, serial = _tool("adb", "adb"), name.removeprefix("adb://")
        if serial.startswith("-"):
            raise EdgeQKVError(f"{name!r} is not a device; write adb://SERIAL or adb://host:port")
        if re.fullmatch(r".+:\d+", serial):  # adb connect exits with 0 whatever happens; the next command tells
            subprocess.run([adb, "connect", serial], capture_output=True, timeout=SECONDS_TO_ANSWER)
        client = (adb, "-s", serial)
        device = Device(name, (*client, "shell", "-T"), f"{self._parent or '/data/local/tmp'}/{FOLDER}", client)
        device.run("true", "connecting")
        return device


def attached() -> list[tuple[str, str]]:
    """Name and state of the devices that adb knows; none when adb is not installed."""
    adb = shutil.which("adb")
    if adb is None:
        return []
    try:
        done = subprocess.run([adb, "devices"], capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        raise EdgeQKVError(
            f"adb devices did not answer in {SECONDS_TO_ANSWER} seconds; end its server with: adb kill-server"
        ) from None
    lines = done.stdout.splitlines()
    found = [line.split("\t") for line in lines[1:] if "\t" in line]
    return [(f"adb://{serial}", state.strip()) for serial, state in found]


def reason(stderr: bytes, code: int) -> str:
    """The last line that a command printed about its failure, and what to do about it when we know."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if not line.startswith(("Warning:", "@"))), f"exit code {code}")
    known = [advice for words, advice in _ADVICE.items() if words in " ".join(lines).lower()]
    text = printable(text)  # a device may say what a terminal would obey
    return f"{text.rstrip('.')}; {known[0]}" if known else text


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingPackage(f"the program {name!r} is not installed; get it with: apt-get install {package}")
    return path
