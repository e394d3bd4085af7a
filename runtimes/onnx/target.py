"""What edgeqkv knows of ONNX Runtime."""

import importlib.util
import sys
from pathlib import Path

from edgeqkv.cache import CacheLayout, check_capacity
from edgeqkv.config import ModelConfig
from edgeqkv.engine import Engine
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.manifest import Artifact, Executor, Kernel, Manifest
from edgeqkv.model_folder import Model
from edgeqkv.native import native_library
from edgeqkv.parameters import parameter_shapes
from edgeqkv.runtimes.operator import operator_takes
from edgeqkv.targets import Demand, Progress, Request, Target
from edgeqkv.weights import INT4, with_int8_cache

# The library of our operators, by its path in the package; what an artifact needs is the operators' names.
LIBRARY = "runtimes/onnx/libedgeqkv_onnx"
OPERATORS = ("edgeqkv::CachedAttention", "edgeqkv::LatentAttention")


class Onnx(Target):
    name = "onnx"
    title = "ONNX Runtime"
    extra = "onnx-runtime"
    weights = ("int8", "int4", "int4-all", "fp32")
    caches = ("fp32", "fp16", "int8")
    kernels = ("fused", "stock")
    options = frozenset({"calibration"})
    prefill_chunk = 128  # measured (docs/decisions.md): weights are read once a chunk, activations grow with it
    packages = ("onnxruntime",)
    android = "libonnxruntime.so"

    def need(self) -> object:
        return require("onnx_ir", "onnx")

    def check(self, config: ModelConfig, request: Request) -> None:
        from edgeqkv.export.onnx.write import products_in_int8, weight_formats

        check_capacity(config, request.capacity)
        if not 1 <= request.prefill_chunk <= request.capacity:
            raise EdgeQKVError(f"prefill chunk {request.prefill_chunk} is outside 1..{request.capacity}, the capacity")
        for kernel in self._kernels(config, request):
            for name, shape in parameter_shapes(config).items():
                weight_formats(request.weights, products_in_int8(config, kernel))(name, shape)

    def write(self, source: Model, request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
        from edgeqkv.export.onnx.write import fused_layout, stock_layout, write_artifacts

        layouts: dict[Kernel, CacheLayout] = {
            kernel: (fused_layout if kernel == "fused" else stock_layout)(source.config, request)
            for kernel in self._kernels(source.config, request)
        }
        return write_artifacts(source, request, layouts, folder, progress)

    def check_artifact(self, artifact: Artifact, layout: CacheLayout, demand: Demand) -> None:
        fused = artifact.kernel == "fused"
        attends = len(artifact.operators) == 1 and artifact.operators[0] in OPERATORS if fused else not artifact.operators
        demand(attends and (artifact.attention == "fused") == fused, f"the {artifact.name} artifact does not say what attends")
        planned = any(entry.arena_bytes is not None or entry.states for entry in artifact.entry_points)
        demand(not planned, f"the {artifact.name} artifact plans memory that ONNX Runtime does not")

    def missing(self, artifact: Artifact) -> None:
        if artifact.operators:
            native_library(LIBRARY)

    def open(
        self, folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None, executor: Executor | None
    ) -> Engine:
        from edgeqkv.runtimes.onnx.engine import OnnxEngine

        operators = native_library(LIBRARY) if artifact.operators else None
        path, layout = folder / next(iter(artifact.files)), manifest.cache_layout(artifact)
        return OnnxEngine(path, layout, artifact.entry_points[0].aliases, manifest.model.config.vocab_size, threads, operators)

    def runner_libraries(self) -> tuple[Path, ...] | None:
        spec = importlib.util.find_spec("onnxruntime")
        if spec is None or not spec.submodule_search_locations:
            return None
        pattern = "libonnxruntime*.dylib" if sys.platform == "darwin" else "libonnxruntime.so*"
        found = sorted((Path(spec.submodule_search_locations[0]) / "capi").glob(pattern))
        return (found[0],) if found else None

    def tolerances(self, artifact: Artifact) -> dict[str, float]:
        """In percent of perplexity: int8 weights 0.5, an int8 cache with scales for each row 0.5, with static ones 1; with int8
        in both places 1. An fp16 cache is a rounding error beside int8 weights, and bounded by KL beside fp32 ones. int4
        weights have bounds of their own, to which an int8 cache adds what it adds beside int8 weights."""
        cache, int8_weights = artifact.cache, artifact.weights.scheme == "int8"
        if artifact.weights.scheme in INT4:
            return with_int8_cache(INT4[artifact.weights.scheme], cache.dtype == "int8")
        if cache.dtype == "int8":
            return {"perplexity_percent": 1.0 if cache.scales == "static" or int8_weights else 0.5}
        if int8_weights:
            return {"mean_kl": 2e-3, "perplexity_percent": 0.5}
        if cache.dtype == "fp16":
            return {"mean_kl": 1e-5, "perplexity_percent": 0.1}
        return {"max_abs_logit": 1e-3, "greedy_identical": 1.0}

    def _kernels(self, config: ModelConfig, request: Request) -> tuple[Kernel, ...]:
        """What decodes fastest first, as measured (docs/benchmarks.md): our operator where its library can be loaded, but for K
        and V of every head in fp32, which GroupQueryAttention reads faster."""
        from edgeqkv.export.onnx.attention import attention_form

        row = config.row
        if not operator_takes(row):
            return ("stock",)
        plain = len(row.widths) == 2 and row.group == 1 and request.cache == "fp32"
        return ("stock", "fused") if plain and attention_form(row, request.cache) == "gqa" else ("fused", "stock")
