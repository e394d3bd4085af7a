"""The log of a run: one JSON object a line, small enough to be kept beside the numbers that come from it."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgeqkv.config import ModelConfig
from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import Strict, from_json, parse_json
from edgeqkv.text_file import read_text

LOG = "training.jsonl"
LARGEST = 2**24  # bytes of a log


class Start(Strict, frozen=True, tag="start", tag_field="kind"):
    """What the run is, and where it began. ``source`` is the sha256 of the weights that a fine-tuning began from."""

    recipe: str
    variant: str
    seed: int
    config: ModelConfig
    parameters: int
    steps: int
    tokens_a_step: int
    precision: str
    text_tokens: int
    text_sha256: str
    held_out_tokens: int
    held_out_sha256: str
    held_out_titles: tuple[str, ...]
    source: str | None
    device: str
    threads: int
    torch: str
    edgeqkv: str


class Step(Strict, frozen=True, tag="step", tag_field="kind"):
    """After so many steps: the mean training loss since the last such line (with a teacher: the divergence from it), and the
    loss on the first windows of the held-out text, both in nats a token. ``seconds`` have passed since the last line, pauses of
    the process among them."""

    step: int
    loss: float
    held_out: float
    seconds: float


class Stretch(Strict, frozen=True):
    """Perplexity of the tokens at positions ``start`` .. ``stop - 1`` of their windows: so much context they have."""

    start: int
    stop: int
    perplexity: float


class End(Strict, frozen=True, tag="end", tag_field="kind"):
    """The finished weights, as they are stored (fp16), computed in fp32 over ``tokens`` of the held-out text."""

    perplexity: float
    bits_per_byte: float
    tokens: int
    by_position: tuple[Stretch, ...]


Line = Start | Step | End


def log_text(lines: Iterable[Line]) -> str:
    return "".join(msgspec.json.encode(line).decode() + "\n" for line in lines)


class Log(Strict, frozen=True):
    """A finished run."""

    start: Start
    steps: tuple[Step, ...]
    end: End


def read_log(path: Path) -> Log:
    """The log of a finished run; :class:`EdgeQKVError` names the line that is none."""
    lines = list[Line]()
    for i, text in enumerate(read_text(path, LARGEST).splitlines(), 1):
        where = f"{path}, line {i}"
        lines.append(from_json(Line, parse_json(text, where), where))  # type: ignore[arg-type]  # a union is no type to mypy
    if len(lines) < 2 or not isinstance(lines[0], Start) or not isinstance(lines[-1], End):
        raise EdgeQKVError(f"{path} is not the log of a finished run: its first line has to be a start and its last an end")
    return Log(lines[0], tuple(line for line in lines[1:-1] if isinstance(line, Step)), lines[-1])
