"""A device for the real adb client: the adb protocol over TCP, commands run by this machine's shell. For tests only.

What it speaks is CNXN, AUTH, OPEN, WRTE, OKAY and CLSE (AOSP, packages/modules/adb/protocol.txt), and of the services only
``shell,v2,raw:`` (shell_protocol.h) and ``localabstract:``, which is this machine's abstract namespace.
"""

import contextlib
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
VERSION, MAX_DATA = 0x01000001, 1 << 18


class Adbd:
    """Listens on a free port. ``state`` is "device", "unauthorized" (never takes a key) or "offline" (never answers)."""

    def __init__(self, state: str = "device", environment: dict[str, str] | None = None) -> None:
        self.state, self.environment = state, environment or {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.commands: list[str] = []
        self._links: list[_Link] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._links.append(_Link(self, connection))

    def vanish(self) -> None:
        """Pull the cable: nothing is closed in an orderly way, and nobody listens any more."""
        self._listener.close()
        for link in self._links:
            link.end()


class _Link:
    def __init__(self, daemon: Adbd, connection: socket.socket) -> None:
        self.daemon, self._socket, self._lock = daemon, connection, threading.Lock()
        self._streams: dict[int, _Shell | _Local] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(command + struct.pack("<5I", first, second, len(data), 0, magic) + data)

    def end(self) -> None:
        for stream in list(self._streams.values()):
            stream.end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        with self._socket.makefile("rb") as stream, contextlib.suppress(OSError, struct.error):
            while True:
                command, first, second, length, _, _ = struct.unpack("<4s5I", stream.read(24))
                self._take(command, first, second, stream.read(length))

    def _take(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if self.daemon.state == "offline":
            return
        if command in (b"CNXN", b"AUTH"):
            if self.daemon.state == "unauthorized":
                self.send(b"AUTH", 1, 0, os.urandom(20))
            else:
                self.send(
                    b"CNXN", VERSION, MAX_DATA, b"device::ro.product.name=test;ro.product.model=Test One;features=shell_v2,cmd"
                )
        elif command == b"OPEN":
            service, _, script = data.rstrip(b"\0").decode().partition(":")
            if service.startswith("shell,v2") and "raw" in service.split(","):
                self.daemon.commands.append(script)
                self._streams[first] = _Shell(self, first, script)
            elif service == "localabstract":
                with contextlib.suppress(ConnectionRefusedError):
                    self._streams[first] = _Local(self, first, script)
                if first not in self._streams:
                    self.send(b"CLSE", 0, first)
            else:
                self.send(b"CLSE", 0, first)
        elif command == b"WRTE":
            self._streams[second].take(data)
            self.send(b"OKAY", second, first)
        elif command == b"OKAY" and second in self._streams:
            self._streams[second].ready.release()
        elif command == b"CLSE" and second in self._streams:
            self._streams.pop(second).end()


class _Local:
    """One connection to a socket in the abstract namespace."""

    def __init__(self, link: _Link, stream: int, name: str) -> None:
        self._link, self._stream = link, stream
        self.ready = threading.Semaphore(1)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(f"\0{name}")
        link.send(b"OKAY", stream, stream)
        threading.Thread(target=self._pump, daemon=True).start()

    def take(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _pump(self) -> None:
        with contextlib.suppress(OSError):
            while content := self._socket.recv(32768):
                self.ready.acquire(timeout=10)
                self._link.send(b"WRTE", self._stream, self._stream, content)
        self._link.send(b"CLSE", self._stream, self._stream)


class _Shell:
    """One command; our id of the stream is the client's."""

    def __init__(self, link: _Link, stream: int, script: str) -> None:
        self._link, self._stream, self._rest = link, stream, b""
        self.ready, self._lock = threading.Semaphore(1), threading.Lock()
        self.process = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | link.daemon.environment, start_new_session=True, cwd=Path("/"),
        )  # fmt: skip
        link.send(b"OKAY", stream, stream)
        pumps = [threading.Thread(target=self._pump, args=a, daemon=True) for a in
                 ((STDOUT, self.process.stdout), (STDERR, self.process.stderr))]  # fmt: skip
        for pump in pumps:
            pump.start()
        threading.Thread(target=self._finish, args=(pumps,), daemon=True).start()

    def end(self) -> None:
        self.process.kill()

    def take(self, data: bytes) -> None:
        """Packets of the shell protocol, which need not end where adb's do."""
        self._rest += data
        while len(self._rest) >= 5 and len(self._rest) >= 5 + (size := struct.unpack("<I", self._rest[1:5])[0]):
            kind, content, self._rest = self._rest[0], self._rest[5 : 5 + size], self._rest[5 + size :]
            with contextlib.suppress(OSError, ValueError):
                if kind == STDIN:
                    self.process.stdin.write(content)
                    self.process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    self.process.stdin.close()

    def _pump(self, kind: int, pipe) -> None:
        while content := os.read(pipe.fileno(), 32768):
            self._write(kind, content)

    def _finish(self, pumps: list[threading.Thread]) -> None:
        for pump in pumps:
            pump.join()
        self._write(EXIT, bytes([self.process.wait() & 0xFF]))
        self.ready.acquire(timeout=10)  # its last write has been taken
        self._link.send(b"CLSE", self._stream, self._stream)

    def _write(self, kind: int, content: bytes) -> None:
        with self._lock:
            if self.ready.acquire(timeout=10):
                self._link.send(b"WRTE", self._stream, self._stream, struct.pack("<BI", kind, len(content)) + content)
