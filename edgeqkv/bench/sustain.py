"""What is measured of one cell after the rounds, when nothing else has a turn: its energy, and its speed while it gets hot."""

import time
from collections.abc import Callable, Sequence

from edgeqkv.bench.energy import SECONDS, joules, read_energy
from edgeqkv.bench.probe import read_vitals
from edgeqkv.bench.record import Energy, SustainedWindow, TokenEnergy
from edgeqkv.bench.running import RunningCell

LONGEST_WINDOW, SHORTEST_WINDOW, WINDOWS = 10.0, 0.5, 20  # seconds; how many windows a short time is cut into


def energy_of(cell: RunningCell, depths: Sequence[int]) -> Energy | None:
    """None where the device tells nothing, or nothing that can be used: a battery that is being charged."""
    found, source = [], None
    for depth in depths:
        cell.fill(depth)
        series = cell.series_for(depth, SECONDS / 4)
        readings, tokens, start = [read_energy(cell.bench.device)], 0, time.monotonic()
        source = readings[0].source
        if source is None:
            return None
        while time.monotonic() - start < SECONDS:
            tokens += len(cell.decode(depth, series).seconds)
            readings.append(read_energy(cell.bench.device))
        taken = joules(readings, time.monotonic() - start)
        if taken is not None:
            found.append(TokenEnergy(depth, taken / tokens))
    return Energy(source=source, joules_per_token=tuple(found)) if source and found else None


def sustained(cell: RunningCell, depth: int, seconds: float, progress: Callable[[float], None]) -> tuple[SustainedWindow, ...]:
    """Decoding at ``depth`` for so long without a rest. ``progress`` is told how much of it has passed."""
    cell.fill(depth)
    series = cell.series_for(depth, min(LONGEST_WINDOW, max(SHORTEST_WINDOW, seconds / WINDOWS)))
    windows: list[SustainedWindow] = []
    start, passed = time.monotonic(), 0.0
    while passed < seconds:
        progress(passed)
        times = cell.decode(depth, series).seconds
        vitals, passed = read_vitals(cell.bench.device), time.monotonic() - start
        windows.append(
            SustainedWindow(
                depth=depth,
                seconds=passed,
                tokens_per_s=len(times) / sum(times),
                frequency_khz=max(vitals.frequencies_khz) if vitals.frequencies_khz else None,
                temperature_mc=max(vitals.temperatures.values()) if vitals.temperatures else None,
            )
        )
    return tuple(windows)
