"""aarch64 instructions of a decoded token, counted by qemu-user: ``make count-aarch64`` builds what this needs and calls it.

``python experiments/aarch64_instructions.py BUILD BUNDLE:KERNEL...``, where BUILD has the runner for aarch64 and the plugin.

An emulator's clock means nothing, but the instructions it runs are those of the real program. The count of a run with 4 tokens
less that of a run with 2, halved, leaves out loading and warming up. Runs begin at a depth, over rows of zeros: attention does
the same work whatever a row holds.
"""

import os
import subprocess
import sys
from pathlib import Path

from edgeqkv.bundle import read_bundle
from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import progress_bar
from edgeqkv.runtimes import matching_artifacts
from edgeqkv.tables import table

CPU = "neoverse-n1"  # ARMv8.2 with dot product, as in most phones of the last years
DEPTHS = (128, 1024, 2000)
FEW, MANY = 2, 4


def count(build: Path, bundle: Path, kernel: str, depth: int, tokens: int) -> int:
    """Instructions of one whole run of the aarch64 runner in ``build`` that decodes ``tokens`` tokens from ``depth``."""
    root = build / "root"
    plugin, counted = build / "instruction_count.so", build / "count"
    command = ["qemu-aarch64", "-plugin", f"{plugin},out={counted}", "-L", str(root), str(build / "run/edgeqkv-run")]
    command += [str(bundle), "--runtime", "onnx", "--kernel", kernel, "--library", str(root / "libonnxruntime.so")]
    command += ["--depth", str(depth), "--ids", "1", "--tokens", str(tokens), "--threads", "1"]
    counted.unlink(missing_ok=True)
    run = subprocess.run(command, env=os.environ | {"QEMU_CPU": CPU}, capture_output=True, text=True, check=False)
    if run.returncode or not counted.is_file():
        raise EdgeQKVError(f"counting {bundle} failed: {run.stderr.strip().rpartition(chr(10))[2]}")
    return int(counted.read_text())


def instructions_per_token(build: Path, bundle: Path, kernel: str, depth: int) -> float:
    few, many = (count(build, bundle, kernel, depth, tokens) for tokens in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def main(build: Path, cells: list[tuple[Path, str]]) -> None:
    """Prints millions of instructions for each bundle and kernel, at each depth twice: the larger difference is the noise."""
    rows, worst, base = [], 0.0, [0.0] * len(DEPTHS)
    with progress_bar("count") as update:
        for i, (bundle, kernel) in enumerate(cells):
            manifest = read_bundle(bundle)
            artifact = matching_artifacts(manifest, "onnx", kernel)[0]
            update(f"{manifest.model.variant} {kernel}", i, len(cells))
            pairs = [[instructions_per_token(build, bundle, kernel, depth) for _ in range(2)] for depth in DEPTHS]
            worst = max(worst, *(abs(a - b) / min(a, b) for a, b in pairs))
            counts = [min(pair) for pair in pairs]
            base = base if i else counts
            name = f"{manifest.model.variant}, {artifact.weights.scheme} / {artifact.cache.dtype}, {kernel}"
            rows.append([name, *(f"{n / 1e6:,.1f} ({n / b:.2f})" for n, b in zip(counts, base, strict=True))])
    print(f"10^6 aarch64 instructions a decoded token, one thread, {CPU} (qemu-user); in brackets relative to the first row\n")
    print(table(["variant, weights / cache, kernel", *(f"at {depth}" for depth in DEPTHS)], rows))
    print(f"\ncounted twice: the two counts of a cell differ by {100 * worst:.3f} % at most")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [(Path(bundle), kernel) for bundle, _, kernel in (a.rpartition(":") for a in sys.argv[2:])])
    except EdgeQKVError as error:
        sys.exit(f"edgeqkv: {error}")
