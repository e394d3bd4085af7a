"""Decoding with int4 weights against int8: ``python experiments/int4_speed.py BUNDLE...`` (make bench-int4).

The first bundle is what the others are compared with. One process, one runtime after the other; in a round every bundle takes
some steps at one depth, so that a ratio is between neighbours in time. The caches are int8 and alike.
"""

import statistics
import sys
import time
from pathlib import Path

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.tables import table

DEPTH, ROUNDS, STEPS, THREADS = 128, 15, 4, 2


def main() -> None:
    bundles = [Path(path) for path in sys.argv[1:]]
    manifests = {bundle: read_bundle(bundle) for bundle in bundles}
    rows = []
    for runtime in dict.fromkeys(artifact.runtime for artifact in manifests[bundles[0]].artifacts):
        able = [bundle for bundle, m in manifests.items() if runtime in {artifact.runtime for artifact in m.artifacts}]
        sessions = {bundle: edgeqkv.open(bundle, runtime, "fused", THREADS, check=False) for bundle in able}
        for session in sessions.values():
            session.prefill(list(range(1, DEPTH + 1)))
        taken: dict[Path, list[float]] = {bundle: [] for bundle in able}
        for _ in range(ROUNDS):
            for bundle, session in sessions.items():
                session.rewind(DEPTH)
                session.step(1)
                start = time.perf_counter()
                for token in range(STEPS):
                    session.step(token)
                taken[bundle].append(1000 * (time.perf_counter() - start) / STEPS)
        first = bundles[0]
        sizes = {b: sum((b / file).stat().st_size for file in s.artifact.files) / 1e6 for b, s in sessions.items()}
        for bundle, session in sessions.items():
            gains = [one / other for one, other in zip(taken[first], taken[bundle], strict=True)]
            speed = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
            times = f"{min(taken[bundle]):.2f} {statistics.median(taken[bundle]):.2f} {max(taken[bundle]):.2f}"
            share = f"{sizes[bundle] / sizes[first]:.2f}"
            rows.append([runtime, session.artifact.weights.scheme, f"{sizes[bundle]:.1f}", share, times, speed])
            session.close()
    variant = manifests[bundles[0]].model.variant
    print(f"{variant}, depth {DEPTH}, {THREADS} threads, {ROUNDS} rounds of {STEPS} steps, ms a token: min median max\n")
    print(table(["runtime", "weights", "files MB", "share", "ms/token", "times as fast"], rows))


if __name__ == "__main__":
    main()
