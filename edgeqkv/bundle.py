"""The bundle: what export writes and every runtime reads. ``edgeqkv.json`` is the contract; its fields are these classes."""

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgeqkv.atomic import atomic_write
from edgeqkv.cache import BY_HEAD, BY_POSITION, Axes, CacheDtype, CacheLayout, ScaleLayout
from edgeqkv.config import ModelConfig, parameter_count
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import TOKENIZER, file_sha256
from edgeqkv.strict import from_json, read_json, to_json
from edgeqkv.text_file import read_text

FORMAT = 3
MANIFEST = "edgeqkv.json"
Runtime = Literal["onnx", "executorch", "coreml"]
Kernel = Literal["fused", "stock"]
WeightScheme = Literal["fp32", "fp16", "int8"]
Executor = Literal["runtime", "interpreter", "value_inference"]
# What a fused artifact needs beyond its runtime's core is ours; ExecuTorch's llama operators are an extension that not every
# build of it has.
OPERATORS: dict[tuple[Runtime, Kernel], set[str]] = {
    ("onnx", "fused"): {"edgeqkv::CachedAttention"},
    ("executorch", "fused"): {"edgeqkv::cached_attention.out"},
    ("executorch", "stock"): {"llama::update_cache.out", "llama::custom_sdpa.out"},
}
ENTRIES = (MANIFEST, TOKENIZER, "onnx", "executorch", "coreml")  # all that a bundle holds at its top


@dataclass(frozen=True)
class ModelEntry:
    """``checkpoint_sha256`` is that of the weight file the bundle was exported from."""

    variant: str
    config: ModelConfig
    parameters: int
    checkpoint_sha256: str
    tokenizer_sha256: str | None


@dataclass(frozen=True)
class CacheEntry:
    """The cache in words that a runtime in any language can allocate from.

    ``shape`` is that of each tensor; ``layout`` names its axes. ``scale_layout`` is explained by
    :class:`edgeqkv.cache.CacheLayout`: with "per_token" the buffers ``scale_names``, float32 of ``scale_shape``
    [batch, kv_head, position], belong to the cache; with "static" ``scales`` maps a tensor's name to its constant scales
    [n_kv_head * head_dim]. ``bytes`` includes all scales.
    """

    tensors: tuple[str, ...]
    names: tuple[str, ...]
    dtype: CacheDtype
    shape: tuple[int, ...]
    layout: Axes
    scale_layout: ScaleLayout
    scale_names: tuple[str, ...]
    scale_shape: tuple[int, ...]
    scales: dict[str, tuple[float, ...]]
    capacity: int
    bytes: int
    bytes_per_position: int
    scale_bytes: int


@dataclass(frozen=True)
class WeightsEntry:
    """``block`` is the number of values of a row that share a scale, by matrix width; empty for floating point."""

    scheme: WeightScheme
    block: dict[str, int]


@dataclass(frozen=True)
class Port:
    """An input or output.

    ``dtype`` is numpy's name ("float32", "int8", "int64"); a shape entry is a number or the name of a size that is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EntryPoint:
    """``aliases`` maps each output that must share memory with an input to that input. Where the runtime keeps the cache itself
    (Core ML's states, ExecuTorch's mutable buffers) nothing of it is an input or output, and ``states`` maps each state to the
    cache tensor it holds. ``arena_bytes`` is what the runtime reserves for a call, the cache among it, where export plans that
    (ExecuTorch); None where the runtime decides."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    aliases: dict[str, str]
    states: dict[str, str]
    arena_bytes: int | None


@dataclass(frozen=True)
class Artifact:
    """One runtime's files: paths relative to the bundle, each with its sha256; the first is the one to load (for Core ML the
    ``Manifest.json`` at the top of the package, whose folder is loaded).

    Artifacts may share files. ``kernel`` is "stock" when the runtime's own operators attend and "fused" when ours do;
    ``operators`` are those that the runtime does not bring, by domain::name. ``cache`` is what this artifact keeps between
    steps. ``prefill_chunk`` is how many tokens a runtime should feed at once: it bounds the memory that prefill takes.
    """

    runtime: Runtime
    kernel: Kernel
    attention: Literal["fused", "gqa", "folded", "sdpa"]
    operators: tuple[str, ...]
    weights: WeightsEntry
    cache: CacheEntry
    files: dict[str, str]
    runtime_version: str
    prefill_chunk: int
    entry_points: tuple[EntryPoint, ...]

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.kernel}"


@dataclass(frozen=True)
class ParityRecord:
    """What ``edgeqkv verify`` found for one artifact. Perplexities are per token on ``text``; KL is in nats.

    ``executor`` is "runtime", or what computed the artifact where its runtime cannot run, or beside it as a second opinion.
    ``greedy_tokens`` is 0 where no greedy text was compared.
    """

    runtime: str
    kernel: str
    executor: Executor
    runtime_version: str
    against_sha256: str
    text: str
    tokens: int
    max_abs_logit: float
    mean_kl: float
    top1_agreement: float
    greedy_tokens: int
    greedy_identical: int
    perplexity_reference: float
    perplexity: float
    thresholds: dict[str, float]
    passed: bool


@dataclass(frozen=True)
class Manifest:
    """``artifacts`` are in the order of preference; all have one ``capacity``."""

    format: int
    edgeqkv: str
    model: ModelEntry
    capacity: int
    artifacts: tuple[Artifact, ...]
    parity: tuple[ParityRecord, ...]

    def cache_layout(self, artifact: Artifact) -> CacheLayout:
        cache, config = artifact.cache, self.model.config
        return CacheLayout(
            n_layer=config.n_layer,
            tensors=("k",) if config.v_is_k else ("k", "v"),
            n_kv_head=config.n_kv_head,
            capacity=self.capacity,
            head_dim=config.head_dim,
            dtype=cache.dtype,
            scales=cache.scale_layout,
            axes=cache.layout,
        )


def cache_entry(layout: CacheLayout, scales: dict[str, tuple[float, ...]]) -> CacheEntry:
    return CacheEntry(
        tensors=layout.tensors,
        names=tuple(layout.names),
        dtype=layout.dtype,
        shape=layout.shape,
        layout=layout.axes,
        scale_layout=layout.scales,
        scale_names=tuple(layout.scale_names),
        scale_shape=layout.scale_shape,
        scales=scales,
        capacity=layout.capacity,
        bytes=layout.bytes,
        bytes_per_position=layout.bytes_per_position,
        scale_bytes=layout.scale_bytes,
    )


def is_bundle(folder: Path) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def read_bundle(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.exists():
        raise EdgeQKVError(f"{folder} does not exist")
    if not path.is_file():
        raise EdgeQKVError(f"{folder} is not a bundle: it has no {MANIFEST}; edgeqkv export writes one")
    data = read_json(path)
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise EdgeQKVError(
            f"{path} has format {version}, this edgeqkv reads up to {FORMAT}: update edgeqkv, or export the bundle again"
        )
    if version != FORMAT:
        raise EdgeQKVError(f"{path}: expected format {FORMAT}, found {version!r}; export the bundle again")
    manifest = from_json(Manifest, data, str(path))
    _check(manifest, str(path))
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """What the types do not say: the parts of a manifest have to agree, and every runtime relies on it."""
    model = manifest.model

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise EdgeQKVError(f"{where}: {what}; export the bundle again")

    expected = model.config.variant, parameter_count(model.config)
    demand((model.variant, model.parameters) == expected, "variant or parameters do not agree with the configuration")
    demand(bool(manifest.artifacts), "it has no artifact")
    kinds = [(artifact.runtime, artifact.kernel) for artifact in manifest.artifacts]
    demand(len(set(kinds)) == len(kinds), "two artifacts are for the same runtime and kernel")
    for artifact in manifest.artifacts:
        name, layout, cache = f"the {artifact.name} artifact", manifest.cache_layout(artifact), artifact.cache
        demand(cache_entry(layout, cache.scales) == cache, f"the cache of {name} does not agree with the model's geometry")
        by_position = (artifact.runtime, artifact.kernel) == ("executorch", "stock")
        axes = BY_POSITION if by_position else BY_HEAD
        demand(cache.layout == axes, f"the cache of {name} has its axes in another order than the program")
        width = layout.n_kv_head * layout.head_dim
        widths = dict.fromkeys(layout.names, width) if layout.scales == "static" else {}
        found = {tensor: len(scale) for tensor, scale in cache.scales.items()}
        demand(found == widths, f"the static scales of {name} do not belong to its cache")
        demand(bool(artifact.files) and bool(artifact.entry_points), f"{name} has no files or no entry points")
        inside = all(not PurePosixPath(f).is_absolute() and ".." not in PurePosixPath(f).parts for f in artifact.files)
        demand(inside, f"{name} names files outside the bundle")
        in_range = 1 <= artifact.prefill_chunk <= manifest.capacity
        demand(in_range, f"{name} has a prefill_chunk outside 1..{manifest.capacity}")
        needs = OPERATORS.get((artifact.runtime, artifact.kernel), set())
        attends = (artifact.kernel == "fused") == (artifact.attention == "fused") and set(artifact.operators) == needs
        demand(attends, f"{name} does not say what attends")
        for entry in artifact.entry_points:
            planned = entry.arena_bytes is None if artifact.runtime != "executorch" else (entry.arena_bytes or 0) >= cache.bytes
            demand(planned, f"the cache of {name} does not fit what its {entry.name} reserves")
            given = {port.name for port in entry.inputs}
            logits = [port for port in entry.outputs if port.name == "logits"]
            demand({"ids", "position"} <= given, f"{name} does not take ids and a position")
            row = (1, 1) if artifact.runtime == "executorch" else ()
            wanted = [("float32", (*row, model.config.vocab_size))]
            demand([(p.dtype, p.shape) for p in logits] == wanted, f"{name} gives no logits")
            if entry.states:
                kept = set(entry.states.values()) == set(layout.buffers) and not entry.aliases
                demand(kept, f"{name} does not keep every cache tensor in a state")
                continue
            buffers = {name: Port(name, dtype, shape) for name, (dtype, shape) in layout.buffers.items()}
            inputs = {port.name: port for port in entry.inputs if port.name not in ("ids", "position")}
            outputs = {port.name: port for port in entry.outputs if port.name != "logits"}
            demand(inputs == buffers, f"{name} does not take the cache tensors as they are")
            demand(entry.aliases.keys() == outputs.keys(), f"{name} does not say where its cache outputs lie")
            demand(set(entry.aliases.values()) == set(buffers), f"{name} does not update every cache tensor")
            # An output is named after the input that it succeeds: two layers' caches cannot be swapped unseen.
            same = all(
                output.startswith(f"{source}.out") and outputs[output] == replace(buffers[source], name=output)
                for output, source in entry.aliases.items()
            )
            demand(same, f"{name} does not update each cache tensor in its own place")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of the bundle with its sha256 in the manifest."""
    expected = {name: digest for artifact in manifest.artifacts for name, digest in artifact.files.items()}
    if manifest.model.tokenizer_sha256 is not None:
        expected[TOKENIZER] = manifest.model.tokenizer_sha256
    for name, digest in expected.items():
        path = Path(folder) / name
        if not path.is_file():
            raise EdgeQKVError(f"{folder}: the file {name} is missing; copy or export the bundle again")
        if file_sha256(path) != digest:
            raise EdgeQKVError(f"{path} is not the file that was exported (its sha256 differs); copy or export it again")


def bundle_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """The bundle's tokenizer; :class:`EdgeQKVError` when the model came without one."""
    if manifest.model.tokenizer_sha256 is None:
        raise EdgeQKVError(f"{folder} has no tokenizer, so it cannot take or write text; use --ids with token ids")
    from edgeqkv.tokenizer import load_tokenizer

    path = Path(folder) / TOKENIZER
    return load_tokenizer(read_text(path), str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic_write(Path(folder) / MANIFEST, to_json(manifest).encode())


def record_parity(folder: Path, record: ParityRecord) -> None:
    """Put a verify result into the manifest, in place of an older one of the same runtime, kernel and executor."""
    manifest = read_bundle(folder)
    key = record.runtime, record.kernel, record.executor
    others = [r for r in manifest.parity if (r.runtime, r.kernel, r.executor) != key]
    write_manifest(folder, replace(manifest, parity=(*others, record)))
