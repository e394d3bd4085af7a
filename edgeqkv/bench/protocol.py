"""What the measuring process and the measured one say to each other: one JSON object a line each way.

Every request names what to ``do``; the others of its fields are the arguments:

========================================================= =========== ====================================================
request                                                   answer      what is done
========================================================= =========== ====================================================
load: bundle, runtime, kernel or null, threads            Loaded      open it; null takes the best kernel that runs there
greedy: ids, tokens                                       Ids         continue a prompt greedily, up to ``tokens`` or the end
first_token: tokens                                       Elapsed     prefill a prompt of so many tokens at depth 0, and choose
                                                                      the best id
fill: depth, how ("prefill" or "zeros")                   Done        make every position below ``depth`` a written row
prefill: depth, tokens                                    Elapsed     the same at a depth whose rows have been filled
decode: depth, warm_up, steps, series                     Steps       time ``steps`` tokens, the first of them at ``depth``,
                                                                      after ``warm_up`` that are not timed; ``series``
                                                                      times over (1 where nothing is said)
bandwidth: threads, mib                                   ReadRate    read so much memory, more than caches hold, in order,
                                                                      each thread a part; needs no bundle
memory                                                    Memory      what the process takes now
========================================================= =========== ====================================================

Whatever fails is answered with ``{"error": sentence, "exit_code": number}``. Times are seconds. ``edgeqkv-run --worker`` (C++)
and :mod:`edgeqkv.bench.worker` (Python) both answer; a field that one of them adds is ignored.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from edgeqkv.bench.memory import Memory
from edgeqkv.bench.timing import Rate, Samples, Seconds


class Answer(msgspec.Struct, frozen=True):
    """Base of what a worker answers."""


class Loaded(Answer, frozen=True):
    """``load_s``: from reading the manifest to a session that is ready, without the check of sha256 sums, which the one that
    asks has made. ``start`` is the process before that; ``kernel`` the one that is used."""

    load_s: Seconds
    start: Memory
    runtime: str
    runtime_version: str
    kernel: str
    cache_bytes: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    packages: dict[str, str] = {}


class Ids(Answer, frozen=True):
    ids: tuple[int, ...]


class Elapsed(Answer, frozen=True):
    seconds: Seconds


class Steps(Answer, frozen=True):
    """``waited``: how long its threads together waited for a processor, of each second that the request took; None where the
    kernel does not say it."""

    seconds: Samples
    waited: Annotated[float, Meta(ge=0)] | None = None


class ReadRate(Answer, frozen=True):
    """The fastest of a few passes; ``source`` is what read: "edgeqkv-run" or "numpy"."""

    bytes_per_s: Rate
    source: str


class Done(Answer, frozen=True):
    pass
