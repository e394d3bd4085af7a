"""What decoding takes of a device's energy, where the device tells it: three sources, of which the first that is there counts.

=============== ============================================================ ===============================================
"RAPL package"  /sys/class/powercap, Intel and AMD: µJ of each processor     the processor; root alone may read it
"power rails"   /sys/bus/iio/devices/*/energy_value, Android's power rails   rails of the processor's cores and of memory
                (Pixel 6 and newer): µWs of each rail
"battery"       /sys/class/power_supply: µA times µV now, of a battery that  the whole device, its screen too
                is discharging
=============== ============================================================ ===============================================
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeqkv.bench.device import Device
from edgeqkv.bench.printable import printable

SECONDS = 3.0  # of decoding, for one number
RAPL, RAILS, BATTERY = "RAPL package", "power rails", "battery"
_RAIL = re.compile(r"\[([^\]]*(?:CPU|MIF|DDR|DRAM)[^\]]*)\],\s*(\d+)")
# Some phones say mA and mV. One that decodes takes more than 20 mA, and no battery has 20 mV.
_LEAST_MICRO = 20_000
_SCRIPT = r"""exec 2>/dev/null
for z in ROOT/sys/class/powercap/*; do
  name=$(cat "$z/name")
  case "$name" in package-*) echo "rapl|$name|$(cat "$z/energy_uj")|$(cat "$z/max_energy_range_uj")";; esac
done
for d in ROOT/sys/bus/iio/devices/*; do [ -r "$d/energy_value" ] && sed 's/^/rail|/' "$d/energy_value"; done
for p in ROOT/sys/class/power_supply/*; do
  [ "$(cat "$p/type")" = Battery ] && echo "battery|$(cat "$p/status")|$(cat "$p/current_now")|$(cat "$p/voltage_now")"
done
true"""


@dataclass(frozen=True)
class Reading:
    """``counters`` are µJ since some moment by the counter's name, ``ranges`` where they begin again at 0; ``watts`` is what a
    discharging battery gives now. ``source`` says which of the two, None: the device tells nothing."""

    source: str | None
    counters: Mapping[str, int]
    ranges: Mapping[str, int]
    watts: float | None


def read_energy(device: Device) -> Reading:
    return parse_energy(device.run(energy_script(), "reading its energy"))


def energy_script(root: str = "") -> str:
    """``root`` is put before /sys, for tests."""
    return _SCRIPT.replace("ROOT", shlex.quote(root) if root else "")


def parse_energy(output: str) -> Reading:
    lines = [printable(line).split("|") for line in output.splitlines()]
    zones = [fields for fields in lines if fields[0] == "rapl" and len(fields) == 4]
    packages = {name: (int(now), int(most)) for _, name, now, most in zones if now.isdigit() and most.isdigit()}
    if packages:
        counters = {name: energy for name, (energy, _) in packages.items()}
        return Reading(RAPL, counters, {name: most for name, (_, most) in packages.items()}, None)
    rails = {match[1]: int(match[2]) for f in lines if f[0] == "rail" and (match := _RAIL.search(f[-1]))}
    if rails:
        return Reading(RAILS, rails, {}, None)
    for _, status, current, voltage in (f for f in lines if f[0] == "battery" and len(f) == 4):
        if status == "Discharging" and re.fullmatch(r"-?\d+", current) and voltage.isdigit():
            watts = _micro(current) * _micro(voltage) * 1e-12
            return Reading(BATTERY, {}, {}, watts) if watts > 0 else Reading(None, {}, {}, None)
    return Reading(None, {}, {}, None)


def joules(readings: Sequence[Reading], seconds: float) -> float | None:
    """Between the first reading and the last, which lie ``seconds`` apart; None where they do not say the same things."""
    first = readings[0]
    if first.source is None or len(readings) < 2 or any(r.source != first.source for r in readings):
        return None
    if first.source == BATTERY:
        watts = [r.watts or 0.0 for r in readings[1:]]  # the first one is from before the work
        return sum(watts) / len(watts) * seconds
    if any(r.counters.keys() != first.counters.keys() for r in readings):
        return None
    micro = 0
    for before, after in pairwise(readings):
        for name, energy in after.counters.items():
            gone = energy - before.counters[name]
            micro += gone if gone >= 0 else gone + after.ranges.get(name, 0)
    return micro * 1e-6 if micro > 0 else None


def _micro(text: str) -> int:
    value = abs(int(text))
    return value if value >= _LEAST_MICRO else value * 1000
