"""The bundle: a folder that export writes and every runtime reads. What its manifest has to hold is checked here."""

from pathlib import Path, PurePosixPath
from typing import Any

from msgspec.structs import replace

from edgeqkv.atomic import atomic_write
from edgeqkv.cache import CacheLayout
from edgeqkv.errors import EdgeQKVError
from edgeqkv.files import file_sha256
from edgeqkv.limits import CACHE_BYTES
from edgeqkv.manifest import FORMAT, MANIFEST, EntryPoint, Manifest, ParityRecord, Port, cache_entry
from edgeqkv.parameters import parameter_count
from edgeqkv.strict import from_json, read_json, to_json
from edgeqkv.targets import targets
from edgeqkv.text import TOKENIZER, load_tokenizer, read_tokenizer


def is_bundle(folder: Path) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def read_bundle(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.exists():
        raise EdgeQKVError(f"{folder} does not exist")
    if not path.exists():
        raise EdgeQKVError(f"{folder} is not a bundle: it has no {MANIFEST}; edgeqkv export writes one")
    data = read_json(path)
    version = data.get("format") if isinstance(data, dict) else None
    if version == 3:
        from edgeqkv.older import manifest_of_format_3

        data = manifest_of_format_3(data, str(path))
    elif isinstance(version, int) and version > FORMAT:
        raise EdgeQKVError(
            f"{path} has format {version}, this edgeqkv reads up to {FORMAT}: update edgeqkv, or export the bundle again"
        )
    elif version != FORMAT:
        raise EdgeQKVError(f"{path}: expected format {FORMAT}, found {version!r}; export the bundle again")
    manifest = from_json(Manifest, data, str(path))
    _check(manifest, str(path))
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """What the types do not say: the parts of a manifest have to agree, and every runtime relies on it."""
    model, text = manifest.model, manifest.text

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise EdgeQKVError(f"{where}: {what}; export the bundle again")

    expected = model.config.variant, parameter_count(model.config)
    demand((model.variant, model.parameters) == expected, "variant or parameters do not agree with the configuration")
    most = model.config.n_positions
    demand(1 <= manifest.capacity <= most, f"capacity is {manifest.capacity}, outside 1 to {most}")
    demand(all(0 <= token < model.config.token_count for token in text.end_tokens), "an end token is none of the model's")
    demand(text.tokenizer is None or text.tokenizer.file == TOKENIZER, f"its tokenizer is not {TOKENIZER}")
    demand(bool(manifest.artifacts), "it has no artifact")
    kinds = [(artifact.runtime, artifact.kernel) for artifact in manifest.artifacts]
    demand(len(set(kinds)) == len(kinds), "two artifacts are for the same runtime and kernel")
    for artifact in manifest.artifacts:
        name, layout, cache = f"the {artifact.name} artifact", manifest.cache_layout(artifact), artifact.cache
        demand(
            cache_entry(layout, cache.static_scales) == cache, f"the cache of {name} does not agree with the model's geometry"
        )
        demand(cache.bytes <= CACHE_BYTES, f"{name}: the cache has more than {CACHE_BYTES} bytes")
        found = {tensor: len(scale) for tensor, scale in cache.static_scales.items()}
        demand(found == layout.static_widths, f"the static scales of {name} do not belong to its cache")
        demand(bool(artifact.files) and bool(artifact.entry_points), f"{name} has no files or no entry points")
        demand(all(map(_inside, artifact.files)), f"{name} names files outside the bundle")
        chunk, most = artifact.prefill_chunk, manifest.capacity
        demand(1 <= chunk <= most, f"{name}: prefill_chunk is {chunk}, outside 1 to {most}")
        for entry in artifact.entry_points:
            _check_entry(entry, name, layout, model.config.vocab_size, demand)
        if artifact.runtime in targets():
            targets()[artifact.runtime].check_artifact(artifact, layout, demand)


def _inside(file: str) -> bool:
    path = PurePosixPath(file)
    return bool(file) and not path.is_absolute() and ".." not in path.parts and "\0" not in file


def _check_entry(entry: EntryPoint, name: str, layout: CacheLayout, vocab_size: int, demand: Any) -> None:
    demand({"ids", "position"} <= {port.name for port in entry.inputs}, f"{name} does not take ids and a position")
    logits = [port for port in entry.outputs if port.name == "logits"]
    wanted = [("float32", vocab_size)]
    demand([(p.dtype, p.shape[-1] if p.shape else 0) for p in logits] == wanted, f"{name} gives no logits")
    demand(all(size == 1 for p in logits for size in p.shape[:-1]), f"{name} gives no logits")
    if entry.states:
        kept = sorted(entry.states.values()) == sorted(buffer.name for buffer in layout.buffers) and not entry.aliases
        demand(kept, f"{name} does not keep every cache tensor in a state")
        return
    buffers = {b.name: Port(b.name, b.dtype, b.shape) for b in layout.buffers}
    inputs = {port.name: port for port in entry.inputs if port.name not in ("ids", "position")}
    outputs = {port.name: port for port in entry.outputs if port.name != "logits"}
    demand(inputs == buffers, f"{name} does not take the cache tensors as they are")
    demand(entry.aliases.keys() == outputs.keys(), f"{name} does not say where its cache outputs lie")
    demand(set(entry.aliases.values()) == set(buffers), f"{name} does not update every cache tensor")
    # An output is named after the input that it succeeds: two layers' caches cannot be swapped unseen.
    same = all(
        output in (f"{source}.out", f"{source}.out_again") and outputs[output] == replace(buffers[source], name=output)
        for output, source in entry.aliases.items()
    )
    demand(same, f"{name} does not update each cache tensor in its own place")


def bundle_files(manifest: Manifest) -> dict[str, str]:
    """Every file that the manifest names, with its sha256."""
    files = {name: digest for artifact in manifest.artifacts for name, digest in artifact.files.items()}
    tokenizer = manifest.text.tokenizer
    return files if tokenizer is None else files | {tokenizer.file: tokenizer.sha256}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of the bundle with its sha256 in the manifest."""
    root = Path(folder).resolve()
    for name, digest in bundle_files(manifest).items():
        path = Path(folder) / name
        if not path.is_file():
            raise EdgeQKVError(f"{folder}: the file {name} is missing; copy or export the bundle again")
        if root not in path.resolve().parents:
            raise EdgeQKVError(f"{path} is a link that leads out of the bundle; copy the file into it")
        if file_sha256(path) != digest:
            raise EdgeQKVError(f"{path} is not the file that was exported (its sha256 differs); copy or export it again")


def bundle_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """The bundle's tokenizer; :class:`EdgeQKVError` when the model came without one."""
    if manifest.text.tokenizer is None:
        raise EdgeQKVError(f"{folder} has no tokenizer, so it cannot take or write text; use --ids with token ids")
    path = Path(folder) / TOKENIZER
    return load_tokenizer(read_tokenizer(path), str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic_write(Path(folder) / MANIFEST, to_json(manifest).encode())


def record_parity(folder: Path, record: ParityRecord) -> None:
    """Put a verify result into the manifest, in place of an older one of the same runtime, kernel and executor."""
    manifest = read_bundle(folder)
    key = record.runtime, record.kernel, record.executor
    others = [r for r in manifest.parity if (r.runtime, r.kernel, r.executor) != key]
    write_manifest(folder, replace(manifest, parity=(*others, record)))
