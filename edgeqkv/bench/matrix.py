"""What is measured of the bundles: the cells, each of them one bundle with one runtime and kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from msgspec.structs import replace

from edgeqkv.bench.baseline import Bundle, why_not_measured
from edgeqkv.bench.plan import Plan, check_plan, default_depths
from edgeqkv.errors import EdgeQKVError
from edgeqkv.manifest import Artifact
from edgeqkv.runtimes import matching_artifacts, no_artifact


@dataclass(frozen=True)
class Cell:
    """One bundle with one of its artifacts: ``runtime`` and ``kernel`` as asked for (None: the best that runs on the device),
    ``artifacts`` those that fit, best first. ``number`` tells it from an identical one in the same run."""

    number: int
    bundle: Bundle
    runtime: str | None
    kernel: str | None
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True)
class Matrix:
    """Each of ``runtimes`` with each of ``kernels`` that a bundle has for it. They may hold None: the bundle's best on the
    device; ``threads`` may hold None: one for each core of the device. ``depths`` None: a quarter, a half and all of the
    capacity. ``plan`` says the rest; its own depths and threads are not looked at."""

    plan: Plan
    runtimes: tuple[str | None, ...] = (None,)
    kernels: tuple[str | None, ...] = (None,)
    depths: tuple[int, ...] | None = None
    threads: tuple[int | None, ...] = (None,)

    def plan_for(self, bundles: Sequence[Bundle], threads: int) -> Plan:
        """The plan in full, refused when it does not fit the smallest bundle."""
        capacity = min(bundle.manifest.capacity for bundle in bundles)
        depths = tuple(sorted(set(self.depths))) if self.depths else default_depths(capacity, self.plan.steps)
        plan = replace(self.plan, depths=depths, threads=threads, prompt=min(self.plan.prompt, depths[-1]))
        check_plan(plan, capacity)
        return plan


def cells_of(matrix: Matrix, bundles: Sequence[Bundle]) -> list[Cell]:
    """Every bundle must have something for each runtime and for each kernel that was asked for."""
    cells: list[Cell] = []
    for bundle in bundles:
        pairs = list(product(matrix.runtimes, _kernels(matrix, bundle)))
        found = {pair: able for pair in pairs if (able := _able(bundle, *pair))}
        for runtime, kernel in pairs:
            if runtime not in {r for r, _ in found} or kernel not in {k for _, k in found}:
                raise _nothing_to_measure(bundle, runtime, kernel)
        cells += [Cell(len(cells) + i, bundle, *pair, able) for i, (pair, able) in enumerate(found.items())]
    return cells


def _kernels(matrix: Matrix, bundle: Bundle) -> tuple[str | None, ...]:
    """A bundle that was named with a kernel has that one. A baseline that nobody asked for has the runtime's own attention, as
    a team has it today, unless the user says which kernels."""
    if bundle.kernel is not None:
        return (bundle.kernel,)
    stock = any(artifact.kernel == "stock" for artifact in bundle.measurable)
    return ("stock",) if bundle.optional and stock and matrix.kernels == (None,) else matrix.kernels


def _able(bundle: Bundle, runtime: str | None, kernel: str | None) -> tuple[Artifact, ...]:
    measurable = bundle.measurable
    return tuple(a for a in matching_artifacts(bundle.manifest, runtime, kernel) if a in measurable)


def _nothing_to_measure(bundle: Bundle, runtime: str | None, kernel: str | None) -> EdgeQKVError:
    found = matching_artifacts(bundle.manifest, runtime, kernel)
    if found:
        return why_not_measured(bundle.folder, found)
    return no_artifact(bundle.folder, bundle.manifest, runtime, kernel)
