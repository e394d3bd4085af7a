"""What ``edgeqkv inspect`` shows: a model or bundle, and the cache budget of every variant at its geometry."""

from pathlib import Path

from msgspec.structs import replace

from edgeqkv.bundle import is_bundle, read_bundle
from edgeqkv.cache import CacheDtype, cache_layout
from edgeqkv.config import ModelConfig, siblings
from edgeqkv.errors import EdgeQKVError
from edgeqkv.manifest import Manifest
from edgeqkv.model_folder import CONFIG, is_model_folder
from edgeqkv.parameters import parameter_count
from edgeqkv.sources import load_model
from edgeqkv.strict import Strict


class Budget(Strict, frozen=True):
    """One row: the whole cache of a variant, scales included, and its share of the baseline's. ``row`` maps each cached
    tensor to the width of its rows."""

    variant: str
    cache_tensors_per_layer: int
    n_kv_head: int
    row: dict[str, int]
    bytes: int
    bytes_per_position: int
    relative_to_baseline: float


class Inspection(Strict, frozen=True):
    kind: str
    variant: str
    parameters: int
    config: ModelConfig
    has_tokenizer: bool
    capacity: int
    cache_dtype: CacheDtype
    budgets: tuple[Budget, ...]
    bundle: Manifest | None


def cache_budgets(config: ModelConfig, capacity: int, dtype: CacheDtype) -> tuple[Budget, ...]:
    """The cache of every variant at one geometry. ``capacity`` may exceed the trained positions: this only counts."""
    longest = max(capacity, config.n_positions)
    family = siblings(config)
    if config.variant not in [sibling.variant for sibling in family]:
        family.append(config)
    layouts = [(c, cache_layout(replace(c, n_positions=longest), capacity, dtype)) for c in family]
    baseline = layouts[0][1].bytes
    return tuple(
        Budget(c.variant, len(a.tensors), a.row.kv_heads, a.row.widths, a.bytes, a.bytes_per_position, a.bytes / baseline)
        for c, a in layouts
    )


def inspect_path(path: Path, capacity: int | None, dtype: CacheDtype | None) -> Inspection:
    """Look at a model folder, a bundle or a checkpoint; a bundle is shown with its own capacity and cache dtype."""
    path = Path(path)
    if path.is_dir() and is_bundle(path):
        manifest = read_bundle(path)
        config, kind, has_tokenizer = manifest.model.config, "bundle", manifest.text.tokenizer is not None
        capacity = manifest.capacity if capacity is None else capacity
        dtype = dtype or manifest.artifacts[0].cache.dtype
    else:
        if path.is_dir() and not (path / CONFIG).exists():
            raise EdgeQKVError(f"{path} is neither a bundle (edgeqkv.json) nor a model folder (config.json)")
        model = load_model(path)
        manifest, config, has_tokenizer = None, model.config, model.tokenizer is not None
        kind = "checkpoint"
        if not path.is_file():
            kind = "model folder" if path.is_dir() and is_model_folder(path) else "Hugging Face folder"
    capacity, dtype = config.n_positions if capacity is None else capacity, dtype or "fp32"
    if capacity < 1:
        raise EdgeQKVError(f"capacity must be at least 1, found {capacity}")
    return Inspection(
        kind=kind,
        variant=config.variant,
        parameters=parameter_count(config),
        config=config,
        has_tokenizer=has_tokenizer,
        capacity=capacity,
        cache_dtype=dtype,
        budgets=cache_budgets(config, capacity, dtype),
        bundle=manifest,
    )
