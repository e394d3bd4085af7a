"""Records made up by hand, to test what is said about them."""

from dataclasses import replace

from conftest import tiny_config

from edgeqkv.bench.memory import Memory
from edgeqkv.bench.record import SCHEMA, Environment, MemorySplit, Record, Vitals, timing

MIB = 2**20
ENVIRONMENT = Environment(
    machine="aarch64", model="Acme One", soc="SM1", cpu="ARM implementer 0x41 part 0xd0c", cpu_features=("asimd",), cores=8,
    clusters=None, memory_bytes=4096 * MIB, memory_available_bytes=2048 * MIB, disk_free_bytes=None, os="Android 14",
    kernel="Linux 5.10", governors=None, affinity="0-7", boot_id=None, emulated=False,
)  # fmt: skip
COLD = Vitals(None, None, {"cpu": 30_000}, 80, "Discharging", False)


def made_record(variant="QKV", milliseconds=10.0, cache_mib=8, **changes) -> Record:
    """Two depths, 5 rounds of 4 samples; weights 20 MiB, rest 12 MiB; ``milliseconds`` is every sample at the deeper depth."""
    config = tiny_config(variant, n_positions=2048)
    rows = [
        timing(depth, 1, tuple(1e-3 * milliseconds * share for _ in range(20))) for depth, share in ((128, 0.5), (1000, 1.0))
    ]
    peak = Memory((32 + cache_mib) * MIB, 30 * MIB, 29 * MIB, 28 * MIB)
    record = Record(
        schema=SCHEMA, kind="measurement", run="run-1", cell=variant, time="2026-01-02T03:04:05+00:00", device="adb://A1",
        environment=ENVIRONMENT, vitals=(COLD, COLD), throttled=False, edgeqkv="0.1.0", git_commit="abc", program="edgeqkv-run",
        packages={}, bundle=variant.lower(), bundle_sha256="0" * 64, baseline="given" if variant == "QKV" else None,
        model=config, variant=variant, weights="int8", cache="fp32", capacity=1024, runtime="onnx", runtime_version="1.31.1",
        kernel="fused", threads=4, steps=4, rounds=5, rounds_done=5, cool_down_s=1.0, interleaving="resident", load_s=(0.25,),
        first_token=timing(0, 128, (0.5,) * 5), prefill=(timing(0, 128, (0.4,) * 5), timing(872, 128, (0.8,) * 5)),
        decode=tuple(rows), memory={"start": peak, "loaded": peak, "end": peak},
        memory_split=MemorySplit(20 * MIB, cache_mib * MIB, 12 * MIB), cache_bytes=cache_mib * MIB,
        cache_bytes_analytic=cache_mib * MIB, cache_bytes_per_position=cache_mib * MIB // 1024, weights_bytes=20 * MIB,
        greedy_ids=(5, 6, 7), parity=None,
    )  # fmt: skip
    return replace(record, **changes)
