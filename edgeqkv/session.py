"""The session: what an app holds while it generates, the same on every runtime. Its rules are in docs/sessions.md."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from edgeqkv.cache import rows_shape
from edgeqkv.engine import Engine
from edgeqkv.errors import CacheFull, CheckFailed, EdgeQKVError
from edgeqkv.manifest import Artifact, Manifest
from edgeqkv.sampling import Sampler


class Session:
    """Prefills and steps over one static cache.

    A session is for one thread at a time: a call while another thread is inside one is refused. Different sessions may run at
    the same time.
    """

    def __init__(self, engine: Engine, manifest: Manifest, artifact: Artifact) -> None:
        self._engine: Engine | None = engine
        self._in_use = threading.Lock()
        self._tokens: list[int] = []
        self._logits: np.ndarray | None = None
        self.manifest, self.artifact = manifest, artifact

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def runtime_version(self) -> str:
        """Version of the runtime library in use, which may differ from the one the bundle was exported with."""
        return self._open.version

    @property
    def capacity(self) -> int:
        """Positions that the cache holds."""
        return self.manifest.capacity

    @property
    def depth(self) -> int:
        """Positions that are filled. :meth:`rewind` goes back."""
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids that the session holds, one for each filled position."""
        return tuple(self._tokens)

    @property
    def logits(self) -> np.ndarray | None:
        """Logits after the last token, float32 [vocab_size]; None at depth 0 and after a rewind."""
        return None if self._logits is None else self._logits.copy()

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache in this process, quantisation scales included."""
        cache = self.artifact.cache
        return self._open.cache_bytes + (cache.scale_bytes if cache.scales == "static" else 0)

    # -- tokens in, logits out ----------------------------------------------------------------------------------------

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append token ids, any number that fits; logits of the last one, float32 [vocab_size].

        Raises :class:`CacheFull` before anything is written when they do not fit.
        """
        tokens = self._checked(ids)
        with self._alone() as engine:
            self._check_room(self.depth + len(tokens), len(tokens))
            return self._run(engine, tokens)

    def step(self, token: int) -> np.ndarray:
        """Append one token id; logits for the next, float32 [vocab_size]. :class:`CacheFull` at capacity."""
        return self.prefill([token])

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Make the session hold exactly ``ids``; logits of the last one, float32 [vocab_size].

        The longest prefix that it already holds, compared token by token, is kept, and the rest is prefilled: a conversation
        that grows costs what is new in it.
        """
        tokens = self._checked(ids)
        self._check_room(len(tokens), len(tokens))
        with self._alone() as engine:
            same = 0
            for held, wanted in zip(self._tokens, tokens, strict=False):
                if held != wanted:
                    break
                same += 1
            same = min(same, len(tokens) - 1)  # where all is held, the last one is run again for its logits
            self._forget(same)
            return self._run(engine, tokens[same:])

    def rewind(self, depth: int) -> None:
        """Keep the first ``depth`` tokens and forget the others; exact, since a row does not depend on those after it."""
        with self._alone():
            if not 0 <= depth <= self.depth:
                raise EdgeQKVError(f"depth {depth} is outside 0..{self.depth}, the positions that are filled")
            if depth < self.depth:
                self._forget(depth)

    def reset(self) -> None:
        """Start over at depth 0. The buffers stay; old rows are never looked at again."""
        with self._alone():
            self._forget(0)

    def generate(
        self,
        ids: Sequence[int] = (),
        sampler: Sampler | None = None,
        limit: int | None = None,
        end_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Prefill ``ids`` at once, then yield sampled ids; without ids it goes on from the logits that the session has.

        It ends before one of ``end_tokens`` (None: the bundle's), after ``limit`` ids, or when the cache is full. The last id
        is not fed back: as many come as there are free positions, and one more.
        """
        if len(ids):
            self.prefill(ids)
        elif self._logits is None:
            raise EdgeQKVError("there are no logits to go on from; give at least one token id")
        choose = (sampler or Sampler()).start()
        ends = set(self.manifest.text.end_tokens if end_tokens is None else end_tokens)
        room = self.capacity - self.depth + 1
        count = room if limit is None else min(limit, room)

        def tokens() -> Iterator[int]:
            for i in range(count):
                if self._logits is None:
                    raise EdgeQKVError("the session was rewound or reset while it generated, so that it has no logits")
                known = self._logits[: self.manifest.model.config.token_count]
                if not np.isfinite(known).all():
                    raise CheckFailed(f"the logits after {self.depth} tokens are not finite")
                token = choose(known, self._tokens)
                if token in ends:
                    return
                yield token
                if i + 1 < count:
                    self.step(token)

        return tokens()

    # -- sessions as files --------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write tokens, filled rows and logits to a file (docs/session-file.md), whole or not at all."""
        from edgeqkv.session_file import write_session

        with self._alone() as engine:
            write_session(Path(path), self.manifest, self.artifact, engine, self._tokens, self._logits)

    def restore(self, path: str | Path) -> None:
        """Go on where a saved session was, bit for bit. A file of another bundle, artifact or cache, or one that was damaged,
        is refused before anything changes."""
        from edgeqkv.session_file import read_session

        with self._alone() as engine:
            saved = read_session(Path(path), self.manifest, self.artifact)
            self._forget(0)
            for name, rows in saved.rows.items():
                engine.write(name, rows)
            self._tokens, self._logits = saved.tokens, saved.logits

    def fork(self) -> "Session":
        """A second session over the same weights with a copy of the filled rows; the two are independent afterwards."""
        with self._alone() as engine:
            other = Session(engine.fork(), self.manifest, self.artifact)
            assert other._engine is not None
            for buffer in self.artifact.cache.buffers if self.depth else ():
                other._engine.write(buffer.name, engine.read(buffer.name, self.depth))
            other._tokens, other._logits = list(self._tokens), self._logits
            return other

    def skip(self, count: int) -> None:
        """For measurements: count ``count`` more positions as filled, with token 0 and rows of zeros, which are written and so
        become resident."""
        if count < 0:
            raise EdgeQKVError(f"cannot skip {count} positions")
        with self._alone() as engine:
            self._check_room(self.depth + count, count)
            layout = self.manifest.cache_layout(self.artifact)
            for buffer in layout.buffers if count else ():
                # Zeros that nothing was written to take no memory of their own.
                engine.write(buffer.name, np.zeros(rows_shape(layout, buffer, count), buffer.dtype), self.depth)
            self._tokens += [0] * count
            self._logits = None if count else self._logits

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the cache and what the runtime holds for it. Any other call on a closed session is refused."""
        if self._engine is not None:
            with self._alone() as engine:
                self._engine, self._logits = None, None
                self._tokens.clear()
                engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- pieces -------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Engine:
        if self._engine is None:
            raise EdgeQKVError("the session is closed")
        return self._engine

    @contextmanager
    def _alone(self) -> Iterator[Engine]:
        if not self._in_use.acquire(blocking=False):
            raise EdgeQKVError("the session is in use by another thread; give each thread a session of its own")
        try:
            yield self._open
        finally:
            self._in_use.release()

    def _forget(self, depth: int) -> None:
        del self._tokens[depth:]
        self._logits = None

    def _run(self, engine: Engine, tokens: list[int]) -> np.ndarray:
        """Append in the artifact's chunks. After a failure none of these tokens is held, and there are no logits."""
        chunk, before, self._logits = self.artifact.prefill_chunk, self.depth, None
        logits = np.empty(0, np.float32)
        try:
            for start in range(0, len(tokens), chunk):
                piece = tokens[start : start + chunk]
                logits = engine.run(np.array(piece, np.int64), self.depth)
                self._tokens += piece
        except BaseException:
            self._forget(before)
            raise
        self._logits = logits
        return logits.copy()

    def _checked(self, ids: Sequence[int]) -> list[int]:
        if isinstance(ids, str | bytes):
            raise EdgeQKVError(
                "this takes token ids, not text: tokenise it first, with edgeqkv.tokenizer(bundle).encode(text).ids"
            )
        try:
            tokens = np.asarray(ids)
        except ValueError as error:
            raise EdgeQKVError("this needs a flat list of at least one token id") from error
        if tokens.ndim != 1 or tokens.size == 0:
            raise EdgeQKVError("this needs a flat list of at least one token id")
        if tokens.dtype.kind not in "iu":
            raise EdgeQKVError(f"token ids are whole numbers of 64 bits at most, found {ids[0]!r:.40}")
        known = self.manifest.model.config.token_count
        wrong = tokens[(tokens < 0) | (tokens >= known)]
        if wrong.size:
            raise EdgeQKVError(f"token id {wrong[0]} is out of range: this model knows 0 to {known - 1}")
        out: list[int] = tokens.tolist()
        return out

    def _check_room(self, total: int, more: int) -> None:
        if total > self.capacity:
            filled = total - more
            raise CacheFull(
                f"{more} {'more ' if filled else ''}tokens do not fit: the cache holds {self.capacity} positions and {filled} "
                "are filled; reset the session, or export with a larger --capacity"
            )
