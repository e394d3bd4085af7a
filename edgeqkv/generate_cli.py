"""``edgeqkv generate`` and ``edgeqkv chat``: text on stdout, as it comes."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeqkv
from edgeqkv.chat import Message, render
from edgeqkv.errors import CacheFull, EdgeQKVError
from edgeqkv.progress import note

if TYPE_CHECKING:
    from edgeqkv.sampling import Sampler
    from edgeqkv.session import Session

Temperature = Annotated[float, typer.Option(help="0 takes the most likely token each time.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set of tokens that has this share of the probability.")]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1, tokens that are in the text already become less likely.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")]
Runtime = Annotated[str | None, typer.Option(help="onnx, executorch, coreml, or native for the C library.")]
Kernel = Annotated[str | None, typer.Option(help="fused or stock; by default fused where it can be loaded.")]
Threads = Annotated[int | None, typer.Option(help="Number of threads; by default the runtime chooses.")]


def generate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to run.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    ids: Annotated[str | None, typer.Option(help="Token ids to continue, separated by commas; prints ids.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens to write; by default until the text ends or the cache is full.")
    ] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    session: Annotated[
        Path | None, typer.Option("--session", help="Continue from this file if it exists, and save the session to it.")
    ] = None,
    runtime: Runtime = None,
    kernel: Kernel = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Stream a continuation of a prompt, until the model ends it."""
    from edgeqkv.sampling import Sampler

    resumed = session is not None and session.exists()
    if (prompt is not None and ids is not None) or (prompt is None and ids is None and not resumed):
        raise EdgeQKVError("give either --prompt TEXT or --ids 1,2,3")
    if tokens is not None and tokens < 1:
        raise EdgeQKVError(f"--tokens must be at least 1, found {tokens}")
    if stop and ids is not None:
        raise EdgeQKVError("--stop is for text; with --ids the end tokens of the bundle end it")
    sampler = Sampler(temperature, top_k, top_p, repetition_penalty, seed)
    with edgeqkv.open(bundle, runtime=runtime, kernel=kernel, threads=threads) as opened:
        by_ids = ids is not None or (prompt is None and opened.manifest.text.tokenizer is None)
        tokenizer = None if by_ids else edgeqkv.tokenizer(bundle)
        if resumed and session is not None:
            opened.restore(session)
        held = list(opened.tokens)
        start = parse_ids(ids) if ids is not None else _encode(tokenizer, prompt, not held) if prompt is not None else []
        if not start and opened.depth == opened.capacity:
            raise CacheFull(
                f"{session} holds a full session, all of its {opened.capacity} positions: there is nothing to go on to"
            )
        written: list[int] = []
        stream = _kept(opened.generate(start, sampler, tokens), written)
        if tokenizer is None:
            text = None
            _print_ids(stream, as_json)
        else:
            text = _print_text(tokenizer, prompt or "", [*held, *start], stream, stop or [], quiet=as_json)
        if as_json:
            print(json.dumps({"prompt_ids": start, "ids": written, "text": text}, ensure_ascii=False))
        if session is not None:
            hold(opened, [*held, *start, *written])
            opened.save(session)


def chat(
    bundle: Annotated[Path, typer.Argument(help="Bundle to talk to.")],
    system: Annotated[str | None, typer.Option(help="Instructions for the model, before the conversation.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer; by default until the cache is full.")] = None,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    runtime: Runtime = None,
    kernel: Kernel = None,
    threads: Threads = None,
) -> None:
    """Talk to a model. /save FILE, /load FILE and /reset do what they say, /quit or the end of input ends it."""
    from edgeqkv.sampling import Sampler

    sampler = Sampler(temperature, top_k, top_p, repetition_penalty, seed)
    with edgeqkv.open(bundle, runtime=runtime, kernel=kernel, threads=threads) as opened:
        conversation = Conversation(opened, edgeqkv.tokenizer(bundle), system)
        if opened.manifest.text.chat_template is None:
            note("this bundle has no chat template, so that the turns are simply written one after another")
        for line in _lines():
            try:
                if line.startswith("/"):
                    if not conversation.command(line):
                        return
                    continue
                for piece in conversation.answer(line, sampler, tokens, stop or []):
                    _write(piece)
                _write("\n")
            except CacheFull as error:
                note(f"{error}; /reset starts over")
            except EdgeQKVError as error:
                note(str(error))


class Conversation:
    """Messages, and a session that holds as many of their tokens as it has seen."""

    def __init__(self, session: "Session", tokenizer: Any, system: str | None) -> None:
        self.session, self.tokenizer = session, tokenizer
        self._first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._first)

    def answer(self, text: str, sampler: "Sampler", limit: int | None, stops: Sequence[str]) -> Iterator[str]:
        """The model's next turn, piece by piece; only what the session does not hold is prefilled."""
        entry = self.session.manifest.text
        asked = [*self.messages, Message(role="user", content=text)]
        ids = self.tokenizer.encode(render(entry.chat_template, asked, entry.special_tokens), add_special_tokens=False).ids
        self.session.feed(ids)
        pieces = []
        for piece in until(stream_text(self.tokenizer, ids, self.session.generate((), sampler, limit)), stops):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, Message(role="assistant", content="".join(pieces))]

    def command(self, line: str) -> bool:
        """Do what a line that begins with a slash says; False ends the conversation."""
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        if word == "/reset":
            self.session.reset()
            self.messages = list(self._first)
        elif word in ("/save", "/load") and rest:
            self._save(Path(rest)) if word == "/save" else self._load(Path(rest))
        else:
            note("the commands are /save FILE, /load FILE, /reset and /quit")
        return True

    def _save(self, path: Path) -> None:
        from edgeqkv.atomic import atomic_write

        self.session.save(path)
        atomic_write(_messages_file(path), json.dumps(self.messages, ensure_ascii=False, indent=2).encode(), mode=0o600)

    def _load(self, path: Path) -> None:
        from edgeqkv.strict import from_json, read_json

        where = _messages_file(path)
        messages = from_json(list[Message], read_json(where), str(where))
        self.session.restore(path)
        self.messages = messages


def stream_text(tokenizer: Any, prompt: list[int], ids: Iterable[int]) -> Iterator[str]:
    from edgeqkv.text import stream_text as stream

    return stream(tokenizer, prompt, ids)


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text of ``pieces`` up to the first of ``stops``; what may be the beginning of one is held back until it is not."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for stop in stops if (at := held.find(stop)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def hold(session: "Session", text: Sequence[int]) -> None:
    """Feed what of ``text`` the session does not hold, the id that was written last: a saved session then holds all of it."""
    rest = text[session.depth :]
    if session.depth + len(rest) > session.capacity:
        note("the cache is full: the session that is saved does not hold the last token")
    elif rest:
        session.prefill(rest)


def parse_ids(text: str, option: str = "--ids") -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise EdgeQKVError(f"{option} takes whole numbers separated by commas, found {text!r}") from error


def _encode(tokenizer: Any, prompt: str, special: bool) -> list[int]:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise EdgeQKVError(f"the prompt is not UTF-8 text ({error.reason})") from error
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=special).ids
    if not ids:
        raise EdgeQKVError("the prompt is empty; give at least one character")
    return ids


def _kept(ids: Iterable[int], written: list[int]) -> Iterator[int]:
    for token in ids:
        written.append(token)
        yield token


def _print_ids(ids: Iterable[int], quiet: bool) -> None:
    for i, token in enumerate(ids):
        if not quiet:
            _write(f"{',' if i else ''}{token}")
    if not quiet:
        _write("\n")


def _print_text(tokenizer: Any, prompt: str, before: list[int], ids: Iterable[int], stops: Sequence[str], quiet: bool) -> str:
    pieces = []
    if not quiet:
        _write(prompt)
    for piece in until(stream_text(tokenizer, before, ids), stops):
        pieces.append(piece)
        if not quiet:
            _write(piece)
    if not quiet:
        _write("\n")
    return "".join(pieces)


def _lines() -> Iterator[str]:
    """What the user types, without empty lines; a prompt is shown in a terminal alone."""
    while True:
        if sys.stdin.isatty():
            _write("> ")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _messages_file(path: Path) -> Path:
    return path.with_name(path.name + ".messages.json")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
