"""The ExecuTorch artifact: the program as a file, and what the manifest says of it."""

import tempfile
from dataclasses import replace
from pathlib import Path

from edgeqkv.cache import BY_POSITION, CacheLayout, cache_layout, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.export.executorch.file import store_once
from edgeqkv.export.executorch.lowering import METHODS, arena_room, lower, to_program, weight_formats
from edgeqkv.export.rounding import rounding
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Kernel, Port, WeightsEntry, cache_entry
from edgeqkv.model_folder import Model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.targets import Progress, Request
from edgeqkv.weights import format_names

FILE = "executorch/model.pte"


def write_artifact(source: Model, request: Request, folder: Path, runtime_version: str, progress: Progress) -> Artifact:
    """Write the program for ``request.kernel``, by default on our operator, below ``folder``."""
    config, chunk = source.config, request.prefill_chunk
    kernel: Kernel = request.kernel or "fused"
    layout, formats = program_layout(config, request), weight_formats(request.weights)
    made = rounding(source, formats, request.calibration, folder, progress)
    progress("exporting the ExecuTorch program")
    lowered = lower(config, source.weights, layout, formats, chunk, kernel, made.quantized)
    program = to_program(lowered, layout, arena_room(config))
    path = folder / FILE
    path.parent.mkdir()
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:
        program.manager.write_to_file(file)
        file.flush()
        store_once(Path(file.name), path)
    return Artifact(
        runtime="executorch",
        kernel=kernel,
        attention="fused" if kernel == "fused" else "sdpa",
        operators=program.operators,
        weights=WeightsEntry(request.weights, format_names(formats, parameter_shapes(config), made.int4_method)),
        cache=cache_entry(layout, {}),
        files={FILE: file_sha256(path)},
        runtime_version=runtime_version,
        prefill_chunk=chunk,
        entry_points=tuple(
            _entry_point(method, chunk, layout, config.vocab_size, program.arenas[method]) for method in METHODS
        ),
    )


def program_layout(config: ModelConfig, request: Request) -> CacheLayout:
    """The cache as the kernel wants it: ExecuTorch's own operators have the positions outside the heads."""
    layout = cache_layout(config, request.capacity, request.cache)
    return replace(layout, axes=BY_POSITION) if request.kernel == "stock" else layout


def _entry_point(name: str, chunk: int, layout: CacheLayout, vocab_size: int, arena_bytes: int) -> EntryPoint:
    ids = Port("ids", "int64", (1, chunk if name == "prefill" else 1))
    position, count = Port("position", "int64", (1,)), Port("count", "int64", (1,))
    return EntryPoint(
        name=name,
        inputs=(ids, position, count) if name == "prefill" else (ids, position),
        outputs=(Port("logits", "float32", (1, 1, vocab_size)),),
        aliases={},
        states={identifier(buffer.name): buffer.name for buffer in layout.buffers},
        arena_bytes=arena_bytes,
    )
