"""The registry of targets: what each runtime can do, how its artifact is written, opened and checked, lies in its own folder.

A runtime is one folder with a :class:`Target` and one line here, or in another distribution an entry point of the group
``edgeqkv.targets``. Nothing else in the package knows a runtime by name.
"""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeqkv.cache import CacheDtype, CacheLayout
from edgeqkv.config import ModelConfig
from edgeqkv.engine import Engine
from edgeqkv.errors import MissingPackage
from edgeqkv.manifest import Artifact, Executor, Kernel, Manifest

if TYPE_CHECKING:
    from edgeqkv.model_folder import Model

BUILT_IN = (
    "edgeqkv.runtimes.onnx.target:Onnx",
    "edgeqkv.runtimes.executorch.target:Executorch",
    "edgeqkv.runtimes.coreml.target:CoreML",
)
Progress = Callable[[str], None]
Demand = Callable[[bool, str], None]


@dataclass(frozen=True)
class Request:
    """What was asked of one target, with its defaults filled in. The last three are options that few targets have."""

    weights: str
    cache: CacheDtype
    capacity: int
    prefill_chunk: int
    calibration: Path | None = None
    kernel: Kernel | None = None
    head_parts: int | None = None


class Target(ABC):
    """What one runtime can do.

    ``title`` is its name in reports. ``weights`` and ``caches`` are what it can store; the first cache is the default.
    ``kernels`` are those that it may have an artifact for, best first. ``options`` are the fields of :class:`Request` beyond
    the common ones that mean something to it. ``prefill_chunk`` is how many tokens it is fed at once by default. ``extra`` of
    pip brings what runs it; ``packages`` are those whose versions a measurement keeps, by a name that is that of the import
    too. ``not_measured`` says why ``bench`` leaves it out, if it does; ``pure`` says that a device's Python runs it with
    ``packages`` and nothing that we compile. ``android`` is the library with which our Android app runs it, if it can.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]
    caches: ClassVar[tuple[CacheDtype, ...]]
    kernels: ClassVar[tuple[Kernel, ...]]
    prefill_chunk: ClassVar[int]
    options: ClassVar[frozenset[str]] = frozenset()
    packages: ClassVar[tuple[str, ...]] = ()
    other_caches: ClassVar[str] = ""
    not_measured: ClassVar[str | None] = None
    pure: ClassVar[bool] = True
    android: ClassVar[str | None] = None

    # -- export -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def need(self) -> object:
        """Import what export needs, or raise :class:`~edgeqkv.errors.MissingPackage`."""

    @abstractmethod
    def check(self, config: ModelConfig, request: Request) -> None:
        """Refuse by name what this target cannot do with a model; it costs nothing."""

    @abstractmethod
    def write(self, source: "Model", request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
        """Put this target's files under ``folder``, in a folder of its own name; best artifact first."""

    # -- run ----------------------------------------------------------------------------------------------------------

    def check_artifact(self, artifact: Artifact, layout: CacheLayout, demand: Demand) -> None:
        """What a manifest's entry of this target has to hold beyond what all have; ``demand(holds, what)`` refuses it."""
        return

    def missing(self, artifact: Artifact) -> None:
        """Raise :class:`~edgeqkv.errors.MissingPackage` when this installation lacks an operator or library that it needs."""
        return

    @abstractmethod
    def open(
        self, folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None, executor: Executor | None
    ) -> Engine:
        """Load an artifact. ``threads`` None is the runtime's choice, ``executor`` None what this machine can do."""

    # -- bench --------------------------------------------------------------------------------------------------------

    def runner_libraries(self) -> tuple[Path, ...] | None:
        """The shared libraries of this installation that edgeqkv-run needs for it; None where it cannot run it."""
        return None

    # -- verify -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def tolerances(self, artifact: Artifact) -> dict[str, float]:
        """What an artifact has to keep, by the precision of its cache and weights: any of ``max_abs_logit``, ``mean_kl``,
        ``perplexity_percent`` and ``greedy_identical``."""

    def executors(self) -> tuple[Executor, ...]:
        """What executes an artifact here: the first as a user would, others as a second opinion over few tokens."""
        return ("runtime",)

    def proof(self, executor: Executor) -> str | None:
        """What a comparison with ``executor`` does not prove, for people."""
        return None


@functools.cache
def targets() -> dict[str, Target]:
    """Every target by name: ours first, then those of other distributions."""
    found: dict[str, Target] = {}
    for line in BUILT_IN:
        module, _, kind = line.partition(":")
        target: Target = getattr(importlib.import_module(module), kind)()
        found[target.name] = target
    for entry in entry_points(group="edgeqkv.targets"):
        target = entry.load()()
        found.setdefault(target.name, target)
    return found


def target_of(artifact: Artifact) -> Target:
    """The target that an artifact was written for."""
    if artifact.runtime not in targets():
        raise MissingPackage(f"this edgeqkv has no target {artifact.runtime!r}; known are {', '.join(targets())}")
    return targets()[artifact.runtime]
