"""What this process takes, by the kernel's own accounts. The measured process imports it, so it costs nothing."""

from dataclasses import dataclass
from pathlib import Path


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


def _kib_fields(path: str) -> dict[str, int]:
    """Fields of a /proc file that are given in kB (KiB), in bytes."""
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            fields[name] = int(rest.split()[0]) * 1024
    return fields
