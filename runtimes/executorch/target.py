"""ExecuTorch as a target: all that the rest of the package has to know of it."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edgeqkv.cache import BY_HEAD, BY_POSITION, CacheLayout, check_capacity
from edgeqkv.config import ModelConfig, Row
from edgeqkv.engine import Engine
from edgeqkv.errors import EdgeQKVError, MissingPackage, require
from edgeqkv.manifest import Artifact, Executor, Manifest
from edgeqkv.native import SUFFIX, native_file, native_library
from edgeqkv.parameters import parameter_shapes
from edgeqkv.runtimes.operator import WIDEST_ROW, operator_takes
from edgeqkv.targets import Demand, Progress, Request, Target
from edgeqkv.weights import INT4, with_int8_cache

if TYPE_CHECKING:
    from edgeqkv.model_folder import Model

# The version of ExecuTorch that this was written for; CMakeLists.txt reads it here.
VERSION = "1.5.1"
# Our session with our operators, by its path in the package, and what it links of ExecuTorch's (CMakeLists.txt).
LIBRARY = "runtimes/executorch/libedgeqkv_executorch"
LINKED = ("", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack", "_threadpool")
ATTENTION, HEAD_LINEAR = "edgeqkv::cached_attention.out", "edgeqkv::head_linear.out"
STOCK_OPERATORS = ("llama::custom_sdpa.out", "llama::update_cache.out")


class Executorch(Target):
    name = "executorch"
    title = "ExecuTorch"
    extra = "executorch-runtime"
    packages = ("executorch",)
    weights = ("int8", "int4", "int4-all", "fp32")
    caches = ("fp32", "fp16", "int8")
    kernels = ("fused", "stock")
    options = frozenset({"kernel", "calibration"})
    prefill_chunk = 64  # as for ONNX; the program is made for it, and a shorter prompt is padded to it
    pure = False

    def need(self) -> object:
        from edgeqkv.export.quiet import quiet

        with quiet():
            exir = require("executorch.exir", "executorch")
        require_version()
        return exir

    def check(self, config: ModelConfig, request: Request) -> None:
        from edgeqkv.export.executorch.lowering import weight_formats

        check_capacity(config, request.capacity)
        for name, shape in parameter_shapes(config).items():
            weight_formats(request.weights)(name, shape)
        if request.kernel == "stock":
            _check_stock(config.row, request)
        elif not operator_takes(config.row):
            raise EdgeQKVError(
                f"a {config.variant} model with {_sizes(config.row)}: our operator takes multiples of 8 up to {WIDEST_ROW}; "
                "for ExecuTorch's own add --kernel stock"
            )
        if request.capacity < 2:
            raise EdgeQKVError(
                "ExecuTorch needs a capacity of at least 2: its prefill takes a fixed chunk of more than one token"
            )
        if not 2 <= request.prefill_chunk <= request.capacity:
            raise EdgeQKVError(f"prefill chunk {request.prefill_chunk} is outside 2..{request.capacity}, the capacity")

    def write(self, source: "Model", request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
        """One program, on our operator or on ExecuTorch's own."""
        from edgeqkv.export.quiet import quiet

        with quiet():
            from edgeqkv.export.executorch.write import write_artifact

            return (write_artifact(source, request, folder, VERSION, progress),)

    def check_artifact(self, artifact: Artifact, layout: CacheLayout, demand: Demand) -> None:
        name, fused, operators = f"the {artifact.name} artifact", artifact.kernel == "fused", set(artifact.operators)
        attends = {ATTENTION} <= operators <= {ATTENTION, HEAD_LINEAR} if fused else operators == set(STOCK_OPERATORS)
        demand(attends and (artifact.attention == "fused") == fused, f"{name} does not say what attends")
        demand(layout.axes == (BY_HEAD if fused else BY_POSITION), f"{name} has the axes of another kernel's cache")
        demand([entry.name for entry in artifact.entry_points] == ["prefill", "decode"], f"{name} has other methods")
        for entry in artifact.entry_points:
            demand(all(port.shape[:-1] == (1, 1) for port in entry.outputs), f"{name} gives no logits")
            demand(bool(entry.states), f"{name} does not keep every cache tensor in a state")
            demand((entry.arena_bytes or 0) >= layout.bytes, f"the cache of {name} does not fit what its {entry.name} reserves")

    def missing(self, artifact: Artifact) -> None:
        session_library()

    def open(
        self, folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None, executor: Executor | None
    ) -> Engine:
        from edgeqkv.runtimes.executorch.engine import ExecutorchEngine

        program, vocab_size = folder / next(iter(artifact.files)), manifest.model.config.vocab_size
        require_version()
        if artifact.kernel == "fused" and not artifact.weights.formats:  # a manifest of format 3 names none
            raise EdgeQKVError(
                f"{program} was exported by an edgeqkv before 0.2, whose attention operator took other arguments; "
                "export the bundle again"
            )
        return ExecutorchEngine(program, manifest.cache_layout(artifact), artifact, vocab_size, threads, session_library())

    def runner_libraries(self) -> tuple[Path, ...] | None:
        try:
            ours = session_library()
        except MissingPackage:
            return None
        spec = importlib.util.find_spec("executorch")
        folders = spec.submodule_search_locations if spec else None
        found = [Path(folder) / f"lib/libexecutorch{part}.so" for folder in list(folders or [])[:1] for part in LINKED]
        return (ours, *found) if found and all(path.is_file() for path in found) else None

    def tolerances(self, artifact: Artifact) -> dict[str, float]:
        """In percent of perplexity: int8 linears, which round the activations as well, 1, with an int8 cache 1.5; an int8 cache
        beside fp32 weights 0.5. An fp16 cache is bounded by KL. int4 weights have bounds of their own."""
        cache = artifact.cache
        if artifact.weights.scheme in INT4:
            return with_int8_cache(INT4[artifact.weights.scheme], cache.dtype == "int8")
        if artifact.weights.scheme == "int8":
            return {"perplexity_percent": 1.5 if cache.dtype == "int8" else 1.0}
        if cache.dtype == "int8":
            return {"perplexity_percent": 0.5}
        if cache.dtype == "fp16":
            return {"mean_kl": 1e-5, "perplexity_percent": 0.1}
        return {"max_abs_logit": 1e-3, "greedy_identical": 1.0}


def session_library() -> Path:
    """Where our compiled session lies; :class:`MissingPackage` says why it cannot be used."""
    try:
        native_file(f"{LIBRARY}{SUFFIX}")
    except MissingPackage as error:
        raise MissingPackage(
            "this edgeqkv was installed without its ExecuTorch session; the published wheels for Linux have it; in a clone "
            f'pip install "executorch=={VERSION}", then EDGEQKV_EXECUTORCH=ON pip install --force-reinstall --no-deps .'
        ) from error
    try:
        return native_library(LIBRARY)
    except MissingPackage as error:
        if "libexecutorch" not in str(error):
            raise
        why = f"our ExecuTorch session does not load ({error.__cause__})"
        raise MissingPackage(f'{why}; pip install "edgeqkv[executorch-runtime]"') from error


def require_version() -> None:
    """Raises :class:`MissingPackage` unless the package is :data:`VERSION`: our session is compiled for its C++, and the export
    relies on how it lays out its file."""
    try:
        found = version("executorch").partition("+")[0]
    except PackageNotFoundError:
        return  # its libraries come from elsewhere
    if found != VERSION:
        raise MissingPackage(f'executorch is {found} and edgeqkv needs {VERSION}: pip install "executorch=={VERSION}"')


def _check_stock(row: Row, request: Request) -> None:
    """update_cache and custom_sdpa read whole rows of one width, in fp32."""
    if request.cache != "fp32":
        raise EdgeQKVError(f"ExecuTorch's own operators, --kernel stock, take an fp32 cache, not {request.cache}")
    if len({row.key.width, row.value.width, *row.widths.values()}) > 1:
        raise EdgeQKVError(
            f"ExecuTorch's own operators, --kernel stock, read whole rows of one width as key and value, and this model has "
            f"{_sizes(row)}; leave --kernel out"
        )


def _sizes(row: Row) -> str:
    rows = " and ".join(f"{tensor} rows of {width}" for tensor, width in row.widths.items())
    return f"{rows} channels, key {row.key.start}..{row.key.stop - 1}, value {row.value.start}..{row.value.stop - 1}"
