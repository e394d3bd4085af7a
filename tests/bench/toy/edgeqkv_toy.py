"""A runtime in another folder, as another distribution would bring it: the decoder's verbs in numpy, one .npz of weights."""

import math
from pathlib import Path

import numpy as np

from edgeqkv.cache import CacheLayout, cache_layout
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.decoder import decoder
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Manifest, Port, WeightsEntry, cache_entry
from edgeqkv.rotary import turns
from edgeqkv.targets import Target

erf = np.vectorize(math.erf, otypes=[np.float32])


class NumpyVerbs:
    """Tensors are float32 [T, width]. ``buffers`` hold the cache, of which ``position`` rows are filled."""

    def __init__(self, config, weights, buffers, position):
        self.config, self.weights, self.buffers, self.position = config, weights, buffers, position

    def embed(self, name, ids):
        return self.weights[f"{name}.weight"][ids]

    def embed_positions(self, name, ids):
        return self.weights[f"{name}.weight"][self.position : self.position + len(ids)]

    def norm(self, x, name, eps):
        if self.config.norm.kind == "layer_norm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * self.weights[f"{name}.weight"]
        return x + self.weights[f"{name}.bias"] if self.config.norm.kind == "layer_norm" else x

    def head_norm(self, x, name, n_head, eps):
        return flat(self.norm(heads(x, n_head), name, eps))

    def linear(self, x, name, width, bias):
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if bias else out

    def head_linear(self, x, name, n_head, width):
        return flat(np.einsum("thc,hwc->thw", heads(x, n_head), self.weights[f"{name}.weight"]))

    def gelu(self, x):
        return x * 0.5 * (1 + erf(x / math.sqrt(2)))

    def swiglu(self, gate, x):
        return gate / (1 + np.exp(-gate)) * x

    def add(self, x, y):
        return x + y

    def scale(self, x, factor):
        return x * np.float32(factor)

    def turn(self, x, n_head, back=False):
        positions: Rotary = self.config.positions
        tables = turns(positions, self.config.n_positions)
        cosine, sine = (table[self.position : self.position + len(x), None] for table in tables)
        first, plain = np.split(heads(x, n_head), [positions.dim], -1)
        pairs = [first[..., 0::2], first[..., 1::2]] if positions.pairs == "interleaved" else np.split(first, 2, -1)
        a, b = pairs
        sine = -sine if back else sine
        turned = [a * cosine - b * sine, b * cosine + a * sine]
        joined = np.stack(turned, -1).reshape(first.shape) if positions.pairs == "interleaved" else np.concatenate(turned, -1)
        return flat(np.concatenate([joined, plain], -1))

    def channels(self, x, n_head, start, stop):
        return flat(heads(x, n_head)[..., start:stop])

    def join(self, parts, n_head):
        return flat(np.concatenate([heads(part, n_head) for part in parts], -1))

    def repeat(self, x, n_head):
        return np.tile(x, (1, n_head))

    def attend(self, q, k, v, layer):
        row, end = self.config.row, self.position + len(q)
        for tensor, x in [("k", k)] if v is None else [("k", k), ("v", v)]:
            self.buffers[f"cache.{layer}.{tensor}"][0, :, self.position : end] = heads(x, row.kv_heads).transpose(1, 0, 2)
        key, value = (
            self.buffers[f"cache.{layer}.{part.tensor}"][0, :, :end, part.start : part.stop].repeat(row.group, 0)
            for part in (row.key, row.value)
        )
        scores = np.einsum("thc,hpc->htp", heads(q, row.heads), key) * np.float32(row.softmax_scale)
        scores[:, ~np.tri(len(q), end, self.position, dtype=bool)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return flat(np.einsum("htp,hpc->thc", shares / shares.sum(-1, keepdims=True), value))

    def last_token(self, x):
        return x[-1:]

    def logits(self, x, name):
        out = x @ self.weights[f"{name}.weight"].T
        out[:, self.config.token_count :] = -np.inf
        return out


def heads(x, n_head):
    return x.reshape(len(x), n_head, -1)


def flat(x):
    return x.reshape(len(x), -1)


class NumpyEngine:
    version = "1.0"

    def __init__(self, config: ModelConfig, weights: dict[str, np.ndarray], layout: CacheLayout) -> None:
        self.config, self.weights, self.layout = config, weights, layout
        self.buffers = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in layout.buffers}

    @property
    def cache_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        return decoder(NumpyVerbs(self.config, self.weights, self.buffers, position), self.config, ids)[0]

    def read(self, name: str, depth: int) -> np.ndarray:
        return self.buffers[name][:, :, :depth].copy()

    def write(self, name: str, rows: np.ndarray) -> None:
        self.buffers[name][:, :, : rows.shape[2]] = rows

    def fork(self) -> "NumpyEngine":
        return NumpyEngine(self.config, self.weights, self.layout)

    def close(self) -> None:
        self.buffers.clear()


class Toy(Target):
    name = "toy"
    title = "Toy runtime"
    extra = "toy"
    weights = ("fp32",)
    caches = ("fp32",)
    kernels = ("stock",)
    prefill_chunk = 8
    packages = ("numpy",)

    def need(self):
        return np

    def check(self, config, request):
        cache_layout(config, request.capacity, request.cache)

    def write(self, source, request, folder: Path, progress):
        (folder / "toy").mkdir()
        np.savez(folder / "toy/weights.npz", **{name: source.weights[name].astype(np.float32) for name in source.weights})
        layout = cache_layout(source.config, request.capacity, request.cache)
        inputs = (Port("ids", "int64", (1, "tokens")), Port("position", "int64", ()))
        outputs = (Port("logits", "float32", (1, 1, source.config.vocab_size)),)
        states = {buffer.name: buffer.name for buffer in layout.buffers}
        artifact = Artifact(
            runtime=self.name,
            kernel="stock",
            attention="numpy",
            operators=(),
            weights=WeightsEntry(request.weights, {}),
            cache=cache_entry(layout, {}),
            files={"toy/weights.npz": file_sha256(folder / "toy/weights.npz")},
            runtime_version=NumpyEngine.version,
            prefill_chunk=request.prefill_chunk,
            entry_points=(EntryPoint("main", inputs, outputs, {}, states, None),),
        )
        return (artifact,)

    def open(self, folder, manifest: Manifest, artifact: Artifact, threads, executor):
        weights = dict(np.load(folder / "toy/weights.npz"))
        return NumpyEngine(manifest.model.config, weights, manifest.cache_layout(artifact))

    def tolerances(self, artifact):
        return {"max_abs_logit": 1e-3, "greedy_identical": 1.0}
