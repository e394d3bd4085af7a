"""The published record: what one run says of one bundle, raw samples and everything that can be read about the machine.

One JSON object a line; ``record.schema.json`` is made from these classes by :mod:`edgeqkv.bench.schema`. Sizes are bytes, times
seconds, frequencies kHz, temperatures 1/1000 °C. What could not be read is None.
"""

import statistics
from dataclasses import dataclass
from typing import Literal

from edgeqkv.bench.memory import Memory
from edgeqkv.bundle import ParityRecord
from edgeqkv.config import ModelConfig

SCHEMA = 2


@dataclass(frozen=True)
class Cluster:
    """Cores that share a maximal frequency: the big and the little ones of a phone."""

    cores: int
    max_khz: int


@dataclass(frozen=True)
class Environment:
    """The machine, before the run. ``machine`` is what uname says; ``affinity`` the cores that a process may use."""

    machine: str | None
    model: str | None
    soc: str | None
    cpu: str | None
    cpu_features: tuple[str, ...] | None
    cores: int | None
    clusters: tuple[Cluster, ...] | None
    memory_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int | None
    os: str | None
    kernel: str | None
    governors: tuple[str, ...] | None
    affinity: str | None
    boot_id: str | None
    emulated: bool


@dataclass(frozen=True)
class Vitals:
    """What moves during a run. ``limits_khz`` is what the system allows each core at that moment, lower when it is hot."""

    frequencies_khz: tuple[int, ...] | None
    limits_khz: tuple[int, ...] | None
    temperatures: dict[str, int] | None
    battery_percent: int | None
    battery_status: str | None
    on_mains: bool | None


@dataclass(frozen=True)
class Timing:
    """Raw samples. ``tokens`` is what one sample covers, ``depth`` the filled positions when it began.

    The samples are in the order of the rounds, as many for each round. Quantiles are nearest-rank, so that each occurred.
    """

    depth: int
    tokens: int
    seconds: tuple[float, ...]
    p50_s: float
    p90_s: float
    p99_s: float
    tokens_per_s: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def timing(depth: int, tokens: int, seconds: tuple[float, ...]) -> Timing:
    """A :class:`Timing` with its quantiles; ``tokens_per_s`` is by the median."""
    p50, p90, p99 = (quantile(seconds, percent) for percent in (50, 90, 99))
    return Timing(depth, tokens, seconds, p50, p90, p99, tokens / statistics.median(seconds))


def quantile(samples: tuple[float, ...], percent: int) -> float:
    ranked = sorted(samples)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]


@dataclass(frozen=True)
class MemorySplit:
    """The peak of memory in three parts.

    ``weights`` is what the files take on disk, ``cache`` the rows that had been filled, ``rest`` all else: the runtime, its
    activations, the copies of weights that it makes. The kernel does not tell these apart; only the sum is measured.
    """

    weights: int
    cache: int
    rest: int


@dataclass(frozen=True)
class Record:
    """One bundle on one device in one interleaved run: records are compared with each other when ``run`` is the same.

    ``rounds_done`` is below ``rounds`` when the run was interrupted; a later record of the same ``run`` and ``cell`` then takes
    its place. ``baseline`` says where a QKV bundle came from when it is the baseline: "given", "found" beside the others, or
    "random weights". ``interleaving`` is "resident" when all bundles stay loaded, "reloaded" when the device has no memory for
    that. On an emulated device nothing is timed: only ``greedy_ids``, the continuation of 1, 2, 3, means anything.
    """

    schema: int
    kind: Literal["measurement"]
    run: str
    cell: str
    time: str
    device: str
    environment: Environment
    vitals: tuple[Vitals, ...]
    throttled: bool | None
    edgeqkv: str
    git_commit: str | None
    program: str
    packages: dict[str, str]
    bundle: str
    bundle_sha256: str
    baseline: Literal["given", "found", "random weights"] | None
    model: ModelConfig
    variant: str
    weights: str
    cache: str
    capacity: int
    runtime: str
    runtime_version: str
    kernel: str
    threads: int
    steps: int
    rounds: int
    rounds_done: int
    cool_down_s: float
    interleaving: Literal["resident", "reloaded"]
    load_s: tuple[float, ...]
    first_token: Timing | None
    prefill: tuple[Timing, ...]
    decode: tuple[Timing, ...]
    memory: dict[str, Memory]
    memory_split: MemorySplit | None
    cache_bytes: int
    cache_bytes_analytic: int
    cache_bytes_per_position: int
    weights_bytes: int
    greedy_ids: tuple[int, ...]
    parity: ParityRecord | None


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why. ``bundle`` is None when it was the device."""

    schema: int
    kind: Literal["failure"]
    run: str
    time: str
    device: str
    bundle: str | None
    message: str


def split_memory(memory: dict[str, Memory], weights: int, cache: int, capacity: int, filled: int) -> MemorySplit | None:
    """Divide the highest peak of any phase; ``filled`` of the cache's ``capacity`` positions have been written by then."""
    peaks = [phase.peak_rss for phase in memory.values() if phase.peak_rss is not None]
    if not peaks:
        return None
    used = cache * min(filled, capacity) // capacity
    resident = min(weights, max(0, max(peaks) - used))  # a mapped file need not be in memory as a whole
    return MemorySplit(resident, used, max(0, max(peaks) - used - resident))


def largest_capacity(record: Record, budget: int) -> int | None:
    """Positions whose cache fits in ``budget`` bytes beside all else that was measured; None when nothing was.

    Never more than the model has positions; 0 when the rest alone does not fit.
    """
    if record.memory_split is None:
        return None
    left = budget - record.memory_split.weights - record.memory_split.rest
    return max(0, min(record.model.n_positions, left // record.cache_bytes_per_position))


def has_throttled(vitals: tuple[Vitals, ...]) -> bool | None:
    """Whether the machine got slower while it was measured; None when it says nothing about that.

    A governor moves the frequency of an idle core freely, so the first reading, taken before the load, counts only for
    temperatures and limits. Throttled is: a limit fell, the fastest core at work lost more than a tenth, or a sensor rose by
    more than 15 °C.
    """
    if len(vitals) < 2:
        return None
    first, last = vitals[0], vitals[-1]
    signs = []
    if first.limits_khz and last.limits_khz:
        signs.append(any(min(v.limits_khz or (0,)) < min(first.limits_khz) for v in vitals[1:] if v.limits_khz))
    busy = [max(v.frequencies_khz) for v in vitals[1:] if v.frequencies_khz]
    if len(busy) > 1:
        signs.append(min(busy[1:]) < 0.9 * busy[0])
    if first.temperatures and last.temperatures:
        signs.append(any(last.temperatures.get(zone, value) - value > 15_000 for zone, value in first.temperatures.items()))
    return any(signs) if signs else None
