"""Records made up by hand, to test what is said about them."""

from conftest import tiny_config
from msgspec.structs import fields, replace

from edgeqkv.bench.machine import Environment, Vitals
from edgeqkv.bench.memory import Memory
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.record import SCHEMA, MemorySplit, MemoryUse, ProgramEntry, Record, Subject, Timings
from edgeqkv.bench.timing import timing

MIB = 2**20
ENVIRONMENT = Environment(
    machine="aarch64", model="Acme One", soc="SM1", cpu="ARM implementer 0x41 part 0xd0c", cpu_features=("asimd",), cores=8,
    clusters=None, memory_bytes=4096 * MIB, memory_available_bytes=2048 * MIB, disk_free_bytes=None, os="Android 14",
    os_kernel="Linux 5.10", governors=None, affinity="0-7", boot_id=None, emulated=False,
)  # fmt: skip
COLD = Vitals(None, None, {"cpu": 30_000}, 80, "Discharging", False)
PLAN = Plan(
    depths=(128, 1000), threads=4, prompt=128, warm_up_steps=2, steps=4, rounds=5, cool_down_s=1.0, filled="prefill",
)  # fmt: skip
NOT_TIMED = {"timings": Timings((), None, (), ()), "phases": {}, "split": None}


def made_record(variant="QKV", milliseconds=10.0, cache_mib=8, **changes) -> Record:
    """Two depths, 5 rounds of 4 samples; weights 20 MiB, rest 12 MiB; ``milliseconds`` is every sample at the deeper depth.

    A change is a field of the record or of what is nested in it.
    """
    record = Record(
        schema=SCHEMA, run="run-1", cell=variant, time="2026-01-02T03:04:05+00:00", device="adb://A1", environment=ENVIRONMENT,
        vitals=(COLD, COLD), throttled=False, program=ProgramEntry("edgeqkv-run", "0.2.0", "abc", {}),
        subject=_subject(variant),
        plan=PLAN, rounds_done=5, interleaving="resident", timings=_timings(milliseconds), memory=_memory(cache_mib),
        greedy_ids=(5, 6, 7),
    )  # fmt: skip
    return changed(record, **changes)


def changed(record: Record, **changes) -> Record:
    for name, value in changes.items():
        inside = [part for part in ("subject", "plan", "timings", "memory") if name in _names(getattr(record, part))]
        if name in _names(record):
            record = replace(record, **{name: value})
        else:
            part = inside[0]
            record = replace(record, **{part: replace(getattr(record, part), **{name: value})})
    return record


def _names(struct) -> set[str]:
    return {field.name for field in fields(struct)}


def _subject(variant):
    return Subject(
        bundle=variant.lower(), bundle_sha256="0" * 64, baseline="given" if variant == "QKV" else None, variant=variant,
        model=tiny_config(variant, n_positions=2048), capacity=1024, weights="int8", cache="fp32", runtime="onnx",
        runtime_version="1.31.1", kernel="fused", parity=None,
    )  # fmt: skip


def _timings(milliseconds):
    decode = tuple(
        timing(depth, 1, tuple(1e-3 * milliseconds * share for _ in range(20))) for depth, share in ((128, 0.5), (1000, 1.0))
    )
    prefill = (timing(0, 128, (0.4,) * 5), timing(872, 128, (0.8,) * 5))
    return Timings((0.25,), timing(0, 128, (0.5,) * 5), prefill, decode)


def _memory(cache_mib):
    peak = Memory((32 + cache_mib) * MIB, 30 * MIB, 29 * MIB, 28 * MIB)
    return MemoryUse(
        phases={"start": peak, "loaded": peak, "end": peak}, split=MemorySplit(20 * MIB, cache_mib * MIB, 12 * MIB),
        cache_bytes=cache_mib * MIB, cache_bytes_analytic=cache_mib * MIB, cache_bytes_per_position=cache_mib * MIB // 1024,
        weights_bytes=20 * MIB,
    )  # fmt: skip
