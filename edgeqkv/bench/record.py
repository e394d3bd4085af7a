"""The published record: what one run says of one bundle, raw samples and everything that can be read about the machine.

One JSON object a line; ``record.schema.json`` is made from these classes by :mod:`edgeqkv.bench.schema`. Sizes are bytes, times
seconds. What could not be read is None. Values that a clock or a kernel cannot have said are refused on reading.
"""

import statistics
from typing import Annotated, Final, Literal

from msgspec import Meta

from edgeqkv.bench.machine import Environment, KiloHertz, Number, Vitals
from edgeqkv.bench.memory import Bytes, Memory
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.timing import Rate, Seconds, Timing
from edgeqkv.config import ModelConfig
from edgeqkv.manifest import ParityRecord
from edgeqkv.strict import Strict

# The number in the field "schema". A file with an older one is refused: measure again.
#   1  a record for each bundle.
#   2  the runtime's kernel; memory split in three; prefill at each depth.
#   3  nested by subject, program, plan, timings and memory; the model's configuration by block; how the cache was filled.
#      Later, and a record without them is as good: app, and what only Android says in vitals; ended, bandwidth, energy,
#      sustained, weights_bytes_a_token, and in the plan visit_s, precision, time_s, sustain_s.
SCHEMA: Final = 3
Origin = Literal["given", "found", "random weights"]
APP: Final = "app"  # ProgramEntry.name
Interleaving = Literal["resident", "reloaded"]
Ended = Literal["rounds", "precision", "time"]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Subject(Strict, frozen=True, kw_only=True):
    """What was measured: one artifact of a bundle.

    ``baseline`` says where the bundle came from when it is the standard model that others are compared with: "given", "found"
    beside the others, or made with "random weights". ``kernel`` is the bundle's, "fused" or "stock".
    """

    bundle: str
    bundle_sha256: str
    baseline: Origin | None
    variant: str
    model: ModelConfig
    capacity: Positive
    weights: str
    cache: str
    runtime: str
    runtime_version: str
    kernel: str
    parity: ParityRecord | None


class ProgramEntry(Strict, frozen=True):
    """The program that held the bundle: "edgeqkv-run", "python" or "app". ``git_commit`` is that of edgeqkv's source."""

    name: str
    edgeqkv: str
    git_commit: str | None
    packages: dict[str, str]


class Timings(Strict, frozen=True):
    """``load_s``: from reading the manifest to a session that is ready, without the check of sha256 sums."""

    load_s: tuple[Seconds, ...]
    first_token: Timing | None
    prefill: tuple[Timing, ...]
    decode: tuple[Timing, ...]


class AppMemory(Strict, frozen=True, kw_only=True):
    """A process as Android's ``dumpsys meminfo`` sums it up; bytes of PSS, where nothing else is said."""

    total_pss: Bytes
    total_rss: Bytes | None
    swap_pss: Bytes | None
    java_heap: Bytes | None
    native_heap: Bytes | None
    code: Bytes | None
    stack: Bytes | None
    graphics: Bytes | None
    private_other: Bytes | None
    system: Bytes | None


class AppEntry(Strict, frozen=True, kw_only=True):
    """The Android app that held the bundle. ``memory`` is its process after the last round."""

    package: str
    version_name: str | None
    version_code: Positive | None
    apk_sha256: str | None
    memory: AppMemory | None


class MemorySplit(Strict, frozen=True):
    """The peak of memory in three parts.

    ``weights`` is what the files take on disk, ``cache`` the rows that had been filled, ``rest`` all else: the runtime, its
    activations, the copies of weights that it makes. The kernel does not tell these apart; only the sum is measured.
    """

    weights: Bytes
    cache: Bytes
    rest: Bytes

    @property
    def peak(self) -> int:
        """Peak RSS over the whole run."""
        return self.weights + self.cache + self.rest


class MemoryUse(Strict, frozen=True, kw_only=True):
    """``phases`` is the process at moments of the run, ``split`` its peak in parts. ``cache_bytes`` is what the runtime
    allocated, ``cache_bytes_analytic`` what the formula says; ``weights_bytes`` is the size of the files,
    ``weights_bytes_a_token`` what decoding one token has to read of them (:mod:`edgeqkv.bench.traffic`)."""

    phases: dict[str, Memory]
    split: MemorySplit | None
    cache_bytes: Positive
    cache_bytes_analytic: Positive
    cache_bytes_per_position: Positive
    weights_bytes: Positive
    weights_bytes_a_token: Positive | None = None

    def at(self, phase: str) -> Memory:
        """The process at a moment; unknown where it was not asked."""
        return self.phases.get(phase, Memory(None, None, None, None))

    @property
    def peak(self) -> int | None:
        return None if self.split is None else self.split.peak


class Bandwidth(Strict, frozen=True, kw_only=True):
    """How fast the machine reads memory, in bytes a second, a sample for each round: with one thread, and with the plan's.

    ``source`` is the program that read: "edgeqkv-run", or "numpy" in the Python worker.
    """

    one_thread: tuple[Rate, ...]
    threads: tuple[Rate, ...]
    source: str

    @property
    def best(self) -> float | None:
        """The median of that number of threads that reads faster; None where nothing was sampled."""
        return max((statistics.median(samples) for samples in (self.one_thread, self.threads) if samples), default=None)


class TokenEnergy(Strict, frozen=True):
    """Of decoding one token at a depth."""

    depth: Annotated[int, Meta(ge=0, le=2**31)]
    joules: Annotated[float, Meta(ge=0, le=1e12)]


class Energy(Strict, frozen=True, kw_only=True):
    """What decoding takes, idle power included. ``source`` says of what: "RAPL package" is the processor, "power rails" those
    of a phone's processors and memory, "battery" the whole device."""

    source: str
    joules_per_token: tuple[TokenEnergy, ...]

    def at(self, depth: int) -> float | None:
        return next((one.joules for one in self.joules_per_token if one.depth == depth), None)


class SustainedWindow(Strict, frozen=True, kw_only=True):
    """Decoding without a rest, after the rounds: one window of it at ``depth``, which ended ``seconds`` after the start.

    ``frequency_khz`` is that of the fastest core and ``temperature_mc``, in 1/1000 °C, that of the hottest sensor, then.
    """

    depth: Annotated[int, Meta(ge=0, le=2**31)]
    seconds: Seconds
    tokens_per_s: Rate
    frequency_khz: KiloHertz | None
    temperature_mc: Number | None


class Record(Strict, frozen=True, kw_only=True, tag="measurement", tag_field="kind"):
    """One bundle on one device in one interleaved run: records are compared with each other when ``run`` and the program are
    the same.

    ``rounds_done`` is below ``plan.rounds`` when the run was interrupted; a later record of the same ``run`` and ``cell`` then
    takes its place. ``interleaving`` is "resident" when all bundles stay loaded, "reloaded" when the device has no memory for
    that. On an emulated device nothing is timed: only ``greedy_ids``, the continuation of 1, 2, 3, means anything.

    ``ended`` is why there were no more rounds: all "rounds" of the plan, every ratio as precise as its "precision", or its
    "time" was up; None when the run was interrupted, and in records before that field.
    """

    schema: Literal[3]
    run: str
    cell: str
    time: str
    device: str
    environment: Environment
    vitals: tuple[Vitals, ...]
    throttled: bool | None
    program: ProgramEntry
    subject: Subject
    plan: Plan
    rounds_done: Positive
    interleaving: Interleaving
    timings: Timings
    memory: MemoryUse
    greedy_ids: tuple[int, ...]
    app: AppEntry | None = None
    ended: Ended | None = None
    bandwidth: Bandwidth | None = None
    energy: Energy | None = None
    sustained: tuple[SustainedWindow, ...] = ()

    def bytes_per_token(self, depth: int) -> int | None:
        """What decoding one token with ``depth`` positions filled has to read at the least: the weights once, and those rows of
        the cache. None where the record does not say what is read of the weights."""
        weights = self.memory.weights_bytes_a_token
        return None if weights is None else weights + depth * self.memory.cache_bytes_per_position


class Failure(Strict, frozen=True, tag="failure", tag_field="kind"):
    """What could not be measured, and why. ``bundle`` is None when it was the device."""

    schema: Literal[3]
    run: str
    time: str
    device: str
    bundle: str | None
    message: str


def bandwidth_share(record: Record, timing: Timing) -> float | None:
    """The share of the read bandwidth that decoding reached: bytes that a token has to read, by the median time, over the
    best of what the machine was measured to read. None where either is unknown."""
    needed, best = record.bytes_per_token(timing.depth), record.bandwidth.best if record.bandwidth else None
    return None if needed is None or best is None else needed / timing.median / best


def split_memory(phases: dict[str, Memory], weights: int, cache: int, share: float) -> MemorySplit | None:
    """Divide the highest peak of any phase; ``share`` of the cache's positions have been written by then."""
    peaks = [phase.peak_rss for phase in phases.values() if phase.peak_rss is not None]
    if not peaks:
        return None
    used = int(cache * min(share, 1.0))
    resident = min(weights, max(0, max(peaks) - used))  # a mapped file need not be in memory as a whole
    return MemorySplit(resident, used, max(0, max(peaks) - used - resident))


def largest_capacity(record: Record, budget: int) -> int | None:
    """Positions whose cache fits in ``budget`` bytes beside all else that was measured; None when nothing was.

    Never more than the model has positions; 0 when the rest alone does not fit.
    """
    split = record.memory.split
    if split is None:
        return None
    fitting = (budget - split.weights - split.rest) // record.memory.cache_bytes_per_position
    return max(0, min(record.subject.model.n_positions, fitting))
