"""The native library's tokenizer and JSON reader behind a pipe, compiled with sanitizers."""

import json
import os
import struct
import subprocess
from pathlib import Path

import tokenizers
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "runtimes/native/src"
UNITS = ["tokenizer", "added_tokens", "bpe", "pretokenizer", "unicode", "unicode_tables", "json"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
FLAGS = ["-std=c++17", "-O1", *WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover"]


class Probe:
    """One process of it. A request that the library refuses is a ValueError with its sentence."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0

    def ask(self, request, body):
        self.process.stdin.write(request.encode() + struct.pack("<I", len(body)) + body)
        self.process.stdin.flush()
        head = self.process.stdout.read(5)
        assert len(head) == 5, f"the probe died with {self.process.wait()}"
        answer = self.process.stdout.read(struct.unpack("<I", head[1:])[0])
        if head[:1] == b"-":
            raise ValueError(answer.decode())
        return answer

    def load(self, description):
        """A tokenizer.json, here and in the package; returns the package's."""
        text = json.dumps(description)
        theirs = tokenizers.Tokenizer.from_str(text)
        assert int(self.ask("T", text.encode())) == theirs.get_vocab_size()
        return theirs

    def encode(self, text, add_special=True):
        return unpack(self.ask("E" if add_special else "e", text.encode()))

    def decode(self, ids, skip_special=True):
        return self.ask("D" if skip_special else "d", pack(ids)).decode()

    def stream(self, ids, skip_special=True):
        answer, pieces = self.ask("S" if skip_special else "s", pack(ids)), []
        while answer:
            (size,) = struct.unpack("<i", answer[:4])
            pieces.append(answer[4 : 4 + size].decode())
            answer = answer[4 + size :]
        return pieces

    def ends(self, regex, text):
        return unpack(self.ask("P", regex.encode() + b"\0" + text.encode()))


def pack(ids):
    return struct.pack(f"<{len(ids)}i", *ids)


def unpack(answer):
    return list(struct.unpack(f"<{len(answer) // 4}i", answer))


def built(tmp_path_factory):
    """The program, compiled once for all workers of a test run."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    program = folder / "tokenizer_probe"
    with FileLock(folder / "tokenizer_probe.lock"):
        if not program.exists():
            sources = [ROOT / "tests/runtimes/native/tokenizer_probe.cc", *(SOURCES / f"{unit}.cc" for unit in UNITS)]
            subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, "-I", SOURCES, *sources, "-o", program], check=True)
    return program
