"""What this process takes, by the kernel's own accounts. The measured process imports it, so it costs nothing."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from edgeqkv.strict import Strict

Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Memory(Strict, frozen=True):
    """Bytes of the measuring process, from the kernel's own accounts; None where they cannot be read.

    ``private`` is what would come back if the process ended; ``rss`` counts the mapped weight file as well, whose pages the
    kernel can drop.
    """

    peak_rss: Bytes | None
    rss: Bytes | None
    pss: Bytes | None
    private: Bytes | None


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


def available_memory() -> int | None:
    """Bytes that this machine can give to new processes without swapping; None where it does not say."""
    try:
        return _kib_fields("/proc/meminfo").get("MemAvailable")
    except OSError:
        return None


def _kib_fields(path: str) -> dict[str, int]:
    """Fields of a /proc file that are given in kB (KiB), in bytes."""
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            fields[name] = int(rest.split()[0]) * 1024
    return fields
