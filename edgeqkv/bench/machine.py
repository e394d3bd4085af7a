"""The machine of a measurement: what it is, and what of it moves while it works.

Sizes are bytes, frequencies kHz, temperatures 1/1000 °C. What could not be read is None.
"""

from typing import Annotated

from msgspec import Meta

from edgeqkv.bench.memory import Bytes
from edgeqkv.strict import Strict

HOTTER = 15_000  # 1/1000 °C: a sensor that rises by more during a run is a sign of throttling
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
KiloHertz = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Cluster(Strict, frozen=True):
    """Cores that share a maximal frequency: the big and the little ones of a phone."""

    cores: int
    max_khz: KiloHertz


class Environment(Strict, frozen=True, kw_only=True):
    """The machine, before the run.

    ``machine`` is what uname says of the processor and ``os_kernel`` of the operating system; ``affinity`` is the cores that a
    process may use.
    """

    machine: str | None
    model: str | None
    soc: str | None
    cpu: str | None
    cpu_features: tuple[str, ...] | None
    cores: Annotated[int, Meta(ge=1, le=2**31)] | None
    clusters: tuple[Cluster, ...] | None
    memory_bytes: Bytes | None
    memory_available_bytes: Bytes | None
    disk_free_bytes: Bytes | None
    os: str | None
    os_kernel: str | None
    governors: tuple[str, ...] | None
    affinity: str | None
    boot_id: str | None
    emulated: bool


class Vitals(Strict, frozen=True):
    """What moves during a run. ``limits_khz`` is what the system allows each core at that moment, lower when it is hot.

    Only Android says the last four. ``thermal_status`` is its own, from 0 (none) over 1 (light throttling) to 6 (shutdown);
    ``in_front`` is the activity that has the screen.
    """

    frequencies_khz: tuple[KiloHertz, ...] | None
    limits_khz: tuple[KiloHertz, ...] | None
    temperatures: dict[str, Number] | None
    battery_percent: Number | None
    battery_status: str | None
    on_mains: bool | None
    thermal_status: Annotated[int, Meta(ge=0, le=6)] | None = None
    screen_on: bool | None = None
    locked: bool | None = None
    in_front: str | None = None


def has_throttled(vitals: tuple[Vitals, ...]) -> bool | None:
    """Whether the machine got slower while it was measured; None when it says nothing about that.

    A governor moves the frequency of an idle core freely, so the first reading, taken before the load, counts only for
    temperatures and limits. Throttled is: a limit fell, the fastest core at work lost more than a tenth, a sensor rose by more
    than :data:`HOTTER`, or Android says so.
    """
    if len(vitals) < 2:
        return None
    first, last = vitals[0], vitals[-1]
    signs = []
    if first.limits_khz and last.limits_khz:
        signs.append(any(min(v.limits_khz) < min(first.limits_khz) for v in vitals[1:] if v.limits_khz))
    busy = [max(v.frequencies_khz) for v in vitals[1:] if v.frequencies_khz]
    if len(busy) > 1:
        signs.append(min(busy[1:]) < 0.9 * busy[0])
    if first.temperatures and last.temperatures:
        signs.append(any(last.temperatures.get(zone, value) - value > HOTTER for zone, value in first.temperatures.items()))
    statuses = [v.thermal_status for v in vitals[1:] if v.thermal_status is not None]
    if statuses:
        signs.append(max(statuses) > 0)
    return any(signs) if signs else None
