"""What one run says of one bundle: raw samples, memory by phase, and everything about the machine that can be read."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

SCHEMA = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of the measuring process, from the kernel's own accounts; None where they cannot be read.

    ``private`` is what would come back if the process ended; ``rss`` counts the mapped weight file as well, whose pages the
    kernel can drop.
    """

    peak_rss: int | None
    rss: int | None
    pss: int | None
    private: int | None


@dataclass(frozen=True)
class Environment:
    """The machine, before the run. Unreadable is None."""

    machine: str
    cpu: str | None
    cores: int | None
    memory_bytes: int | None
    system: str
    governor: str | None
    frequency_khz: int | None
    temperature_millicelsius: int | None
    python: str
    emulated: bool


@dataclass(frozen=True)
class Timing:
    """Raw samples in seconds. ``tokens`` is what one sample covers; ``depth`` the filled positions when it began."""

    depth: int
    tokens: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, percent: int) -> float:
        """Nearest-rank quantile, so that it is a sample that occurred."""
        ranked = sorted(self.seconds)
        return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]


@dataclass(frozen=True)
class Record:
    """``native``: the measured process was edgeqkv-run, without Python."""

    schema: int
    device: str
    environment: Environment
    bundle: str
    manifest_sha256: str
    variant: str
    weights: str
    cache: str
    capacity: int
    runtime: str
    runtime_version: str
    kernel: str
    native: bool
    threads: int
    load_s: float
    first_token: Timing
    prefill: tuple[Timing, ...]
    decode: tuple[Timing, ...]
    memory: dict[str, Memory]
    cache_bytes: int
    cache_bytes_analytic: int
    weights_bytes: int


def memory_of_this_process() -> Memory:
    try:
        status = _kib_fields("/proc/self/status")
        rollup = _kib_fields("/proc/self/smaps_rollup")
    except OSError:
        return Memory(None, None, None, None)
    return Memory(
        peak_rss=status.get("VmHWM"),
        rss=rollup.get("Rss"),
        pss=rollup.get("Pss"),
        private=rollup.get("Private_Dirty", 0) + rollup.get("Private_Clean", 0),
    )


def environment() -> Environment:
    cpu0 = "/sys/devices/system/cpu/cpu0/cpufreq"
    frequency, temperature = _line(f"{cpu0}/scaling_cur_freq"), _line("/sys/class/thermal/thermal_zone0/temp")
    return Environment(
        machine=platform.machine(),
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        memory_bytes=_total_memory(),
        system=f"{platform.system()} {platform.release()}",
        governor=_line(f"{cpu0}/scaling_governor"),
        frequency_khz=int(frequency) if frequency else None,
        temperature_millicelsius=int(temperature) if temperature else None,
        python=platform.python_version(),
        emulated=False,
    )


def _total_memory() -> int | None:
    try:
        return _kib_fields("/proc/meminfo").get("MemTotal")
    except OSError:
        return None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return None


def _kib_fields(path: str) -> dict[str, int]:
    """Fields of a /proc file that are given in kB (KiB), in bytes."""
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            fields[name] = int(rest.split()[0]) * 1024
    return fields


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
