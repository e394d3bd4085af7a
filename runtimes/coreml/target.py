"""Core ML as a target: all that the rest of the package has to know of it."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from edgeqkv.cache import CacheLayout, cache_layout, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.errors import EdgeQKVError
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Executor, Manifest, Port, WeightsEntry, cache_entry
from edgeqkv.parameters import parameter_shapes
from edgeqkv.runtimes.coreml.engine import CoremlEngine
from edgeqkv.runtimes.coreml.package import MANIFEST_FILE, PACKAGE, SPEC_FILE, WEIGHT_FILE, require_coremltools
from edgeqkv.targets import Demand, Progress, Request, Target
from edgeqkv.weights import INT4, format_names

if TYPE_CHECKING:
    from edgeqkv.model_folder import Model

FILES = tuple(f"{PACKAGE}/{name}" for name in (MANIFEST_FILE, SPEC_FILE, WEIGHT_FILE))
NOT_CORE_ML = (
    "Core ML needs macOS 15, so this runs the package in numpy, which is for checking it: the results are those of the "
    "package, the time and memory are not those of a device"
)
WHAT_THIS_PROVES = (
    "Core ML was not run. Two programs that share no code computed the package as it lies on disk: our interpreter, and "
    "Apple's own value_inference of each operation (over few tokens, it is slow).\n"
    "Proved: the graph, the stored weights, what the states hold. Not proved: that a device loads it, what the Neural Engine "
    "takes, how that rounds, time and memory."
)


class CoreML(Target):
    name = "coreml"
    title = "Core ML"
    extra = "coreml"
    packages = ("coremltools",)
    weights = ("int8", "int4", "int4-all", "fp16")
    caches = ("fp16",)
    other_caches = (
        "Core ML holds states in fp16 only; leave --cache out, and for a smaller cache lower --capacity or take a model with "
        "fewer KV heads"
    )
    kernels = ("stock",)
    options = frozenset({"head_parts", "calibration"})
    prefill_chunk = 32  # writes of 32 rows into a state are known to work on the Neural Engine, of 128 to fail
    not_measured = "bench does not measure Core ML; use Xcode's performance report"
    pure = False

    def need(self) -> object:
        return require_coremltools()

    def check(self, config: ModelConfig, request: Request) -> None:
        from edgeqkv.export.coreml.limits import check_numbers, check_sizes
        from edgeqkv.export.coreml.stored import weight_formats

        cache_layout(config, request.capacity, request.cache)
        check_sizes(config, request.capacity, request.prefill_chunk, request.head_parts)
        check_numbers(config)
        for name, shape in parameter_shapes(config).items():
            weight_formats(request.weights)(name, shape)

    def write(self, source: "Model", request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
        from edgeqkv.export.coreml.program import build_program, write_package
        from edgeqkv.export.coreml.stored import weight_formats
        from edgeqkv.export.rounding import rounding

        config, formats = source.config, weight_formats(request.weights)
        layout = cache_layout(config, request.capacity, request.cache)
        made = rounding(source, formats, request.calibration, folder, progress)
        progress("building the Core ML functions")
        program = build_program(
            config, source.weights, layout, formats, request.prefill_chunk, request.head_parts, made.quantized
        )
        progress("writing the Core ML package")
        write_package(program, folder / PACKAGE, f"{config.variant} language model, {request.weights} weights")
        return (
            Artifact(
                runtime=self.name,
                kernel="stock",
                attention="folded",
                operators=(),
                weights=WeightsEntry(request.weights, format_names(formats, parameter_shapes(config), made.int4_method)),
                cache=cache_entry(layout, {}),
                files={name: file_sha256(folder / name) for name in FILES},
                runtime_version=require_coremltools().__version__,
                prefill_chunk=request.prefill_chunk,
                entry_points=entry_points(layout, request.prefill_chunk, config.vocab_size),
            ),
        )

    def check_artifact(self, artifact: Artifact, layout: CacheLayout, demand: Demand) -> None:
        name = f"the {artifact.name} artifact"
        demand(set(artifact.files) == set(FILES), f"{name} is not the package {PACKAGE}")
        demand(artifact.cache.dtype == "fp16", f"{name} has a cache that no state of Core ML can hold")
        (vocab_size,) = (int(port.shape[-1]) for port in artifact.entry_points[0].outputs if port.name == "logits")
        expected = entry_points(layout, artifact.prefill_chunk, vocab_size)
        demand(artifact.entry_points == expected, f"{name} does not have the functions prefill and decode")

    def open(
        self, folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None, executor: Executor | None
    ) -> CoremlEngine:
        if threads is not None:
            raise EdgeQKVError("Core ML chooses its threads and compute units itself; leave threads out")
        here = self.executors()[0]
        engine = CoremlEngine(folder / PACKAGE, manifest.cache_layout(artifact), artifact.prefill_chunk, executor or here)
        if executor is None and here == "interpreter":
            warnings.warn(NOT_CORE_ML, RuntimeWarning, stacklevel=1)  # one place, so that Python says it once
        return engine

    def tolerances(self, artifact: Artifact) -> dict[str, float]:
        """Everything is computed in fp16. The larger error is that of int8 weights; int4 ones have bounds of their own."""
        if artifact.weights.scheme in INT4:
            return dict(INT4[artifact.weights.scheme])
        if artifact.weights.scheme == "int8":
            return {"mean_kl": 2e-3, "perplexity_percent": 0.5}
        return {"mean_kl": 5e-5, "perplexity_percent": 0.1}

    def executors(self) -> tuple[Executor, ...]:
        return "runtime" if sys.platform == "darwin" else "interpreter", "value_inference"

    def proof(self, executor: Executor) -> str | None:
        return WHAT_THIS_PROVES if executor == "interpreter" else None


def entry_points(layout: CacheLayout, prefill_chunk: int, vocab_size: int) -> tuple[EntryPoint, EntryPoint]:
    """The two functions of every package."""

    def function(name: str, tokens: int) -> EntryPoint:
        return EntryPoint(
            name=name,
            inputs=(Port("ids", "int32", (1, tokens)), Port("position", "int32", (1,))),
            outputs=(Port("logits", "float32", (vocab_size,)),),
            aliases={},
            states={identifier(buffer.name): buffer.name for buffer in layout.buffers},
            arena_bytes=None,
        )

    return function("prefill", prefill_chunk), function("decode", 1)
