"""The decoder's verbs in numpy."""

import numpy as np

from edgeqkv.decoder import absorbed
from edgeqkv.rotary import turns


def heads_of(x, n_head):
    return x.reshape(*x.shape[:-1], n_head, -1)


class NumpyVerbs:
    """``cache`` maps a buffer's name to its array; ``position`` is how much of it is filled."""

    def __init__(self, config, weights, cache, position):
        self.config, self.weights, self.cache, self.position = config, weights, cache, position

    def embed(self, name, ids):
        return self.weights[f"{name}.weight"][ids]

    def embed_positions(self, name, ids):
        return self.weights[f"{name}.weight"][self.position : self.position + ids.shape[1]]

    def norm(self, x, name, eps):
        weight, rms = self.weights[f"{name}.weight"], self.config.norm.kind == "rms_norm"
        centred = x if rms else x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight
        return scaled if rms else scaled + self.weights[f"{name}.bias"]

    def head_norm(self, x, name, n_head, eps):
        return self.norm(heads_of(x, n_head), name, eps).reshape(x.shape)

    def linear(self, x, name, width, bias):
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if bias else out

    def head_linear(self, x, name, n_head, width):
        return np.einsum("bthi,hoi->btho", heads_of(x, n_head), self.weights[f"{name}.weight"]).reshape(*x.shape[:2], -1)

    def gelu(self, x):
        from math import erf, sqrt

        return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)).astype(np.float32))

    def swiglu(self, gate, x):
        return gate / (1 + np.exp(-gate)) * x

    def add(self, x, y):
        return x + y

    def scale(self, x, factor):
        return x * np.float32(factor)

    def turn(self, x, n_head, back=False):
        positions, heads = self.config.positions, heads_of(x, n_head)
        cosine, sine = (table[self.position :, None] for table in turns(positions, self.position + x.shape[1]))
        sine = -sine if back else sine
        first, plain = heads[..., : positions.dim], heads[..., positions.dim :]
        if positions.pairs == "interleaved":
            a, b = first[..., 0::2], first[..., 1::2]
            turned = np.stack([a * cosine - b * sine, b * cosine + a * sine], -1).reshape(first.shape)
        else:
            a, b = np.split(first, 2, -1)
            turned = np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)
        return np.concatenate([turned, plain], -1).reshape(x.shape)

    def channels(self, x, n_head, start, stop):
        return heads_of(x, n_head)[..., start:stop].reshape(*x.shape[:2], -1)

    def join(self, parts, n_head):
        return np.concatenate([heads_of(part, n_head) for part in parts], -1).reshape(*parts[0].shape[:2], -1)

    def repeat(self, x, n_head):
        return np.tile(x, (1, 1, n_head))

    def attend_latent(self, q_nope, q_rope, row, name, layer):
        return absorbed(self, self.config, q_nope, q_rope, row, name, layer)

    def attend(self, q, k, v, layer):
        row, end = self.config.row, self.position + q.shape[1]
        for tensor, x in (("k", k), ("v", v)):
            if x is not None:
                self.cache[f"cache.{layer}.{tensor}"][0, :, self.position : end] = heads_of(x[0], row.kv_heads).swapaxes(0, 1)
        key, value = (
            self.cache[f"cache.{layer}.{part.tensor}"][0, :, :end, part.start : part.stop] for part in (row.key, row.value)
        )
        queries = heads_of(q[0], row.heads).swapaxes(0, 1)
        scores = queries @ key.repeat(row.group, 0).swapaxes(1, 2) * row.softmax_scale
        hidden = np.arange(end)[None] > self.position + np.arange(q.shape[1])[:, None]
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ value.repeat(row.group, 0)
        return out.swapaxes(0, 1).reshape(1, q.shape[1], -1)

    def last_token(self, x):
        return x[:, -1:]

    def logits(self, x, name):
        out = x @ self.weights[f"{name}.weight"].T
        out[..., self.config.token_count :] = -np.inf
        return out
