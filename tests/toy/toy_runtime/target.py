"""All that edgeqkv has to know of this runtime."""

import numpy as np

from edgeqkv.cache import cache_layout, check_capacity, position_axis
from edgeqkv.decoder import decoder
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Port, WeightsEntry, cache_entry
from edgeqkv.targets import Target

from .verbs import NumpyVerbs


class Toy(Target):
    name = "toy"
    title = "Toy Runtime"
    extra = "toy"
    weights = ("fp32",)
    caches = ("fp32",)
    kernels = ("stock",)
    prefill_chunk = 8
    packages = ("numpy",)

    def need(self):
        return np

    def check(self, config, request):
        check_capacity(config, request.capacity)

    def write(self, source, request, folder, progress):
        layout = cache_layout(source.config, request.capacity, request.cache)
        (folder / "toy").mkdir()
        with (folder / "toy/weights.npz").open("wb") as file:
            np.savez(file, **{name: array.astype(np.float32) for name, array in source.weights.items()})
        ports = tuple(Port(buffer.name, buffer.dtype, buffer.shape) for buffer in layout.buffers)
        entry = EntryPoint(
            name="main",
            inputs=(Port("ids", "int64", (1, "tokens")), Port("position", "int64", (1,))),
            outputs=(Port("logits", "float32", (source.config.vocab_size,)),),
            aliases={},
            states={port.name: port.name for port in ports},
            arena_bytes=None,
        )
        artifact = Artifact(
            runtime="toy",
            kernel="stock",
            attention="numpy",
            operators=(),
            weights=WeightsEntry("fp32", {}),
            cache=cache_entry(layout, {}),
            files={"toy/weights.npz": file_sha256(folder / "toy/weights.npz")},
            runtime_version="1.0",
            prefill_chunk=request.prefill_chunk,
            entry_points=(entry,),
        )
        return (artifact,)

    def open(self, folder, manifest, artifact, threads, executor):
        return ToyEngine(folder / "toy/weights.npz", manifest.model.config, manifest.cache_layout(artifact))

    def tolerances(self, artifact):
        return {"max_abs_logit": 1e-3, "greedy_identical": 1.0}


class ToyEngine:
    version = "1.0"

    def __init__(self, path, config, layout):
        self.config, self.layout = config, layout
        self.weights = dict(np.load(path))
        self.cache = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in layout.buffers}

    @property
    def cache_bytes(self):
        return sum(array.nbytes for array in self.cache.values())

    def run(self, ids, position):
        verbs = NumpyVerbs(self.config, self.weights, self.cache, position)
        return decoder(verbs, self.config, ids[None])[0, 0].astype(np.float32)

    def read(self, name, depth):
        return self.cache[name].take(np.arange(depth), axis=position_axis(self.layout, name))

    def write(self, name, rows, first=0):
        axis = position_axis(self.layout, name)
        self.cache[name].swapaxes(0, axis)[first : first + rows.shape[axis]] = rows.swapaxes(0, axis)

    def fork(self):
        other = object.__new__(ToyEngine)
        other.__dict__ |= self.__dict__ | {"cache": {name: np.zeros_like(array) for name, array in self.cache.items()}}
        return other

    def close(self):
        self.cache = {}
