"""From an ordinary model to one cached tensor: the weights that healing by distillation begins from.

A head's scores are (Q x)ᵀ K x' and its output is W V x'. With P C in place of K and R C in place of V, where Pᵀ goes into Q and
R into W, all that is cached is C x'. What is lost is rank: P C and R C together have that of one head (Q-MQA: one for all).
What is constant over positions is not lost: for keys it cancels in the softmax, for values it goes into the output's bias.
"""

from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from edgeqkv.config import ModelConfig, Rotary, SharedAttention, with_variant
from edgeqkv.corpus import token_windows
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs, heads_of
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model

# How C is found:
#   mean    C is the mean of K and V of the heads that share it; Q and W stay.
#   factor  joint SVD of the matrices K and V, as MLA is made of other models (MHA2MLA, Ji et al., arXiv 2502.14837).
#   fit     the same for what attention uses of them: on inputs as a text gives them, keys as its queries weigh them, values as
#           the output projection does; scores and outputs count alike.
Start = Literal["mean", "factor", "fit"]
TOKENS, WINDOW = 8192, 512  # of the text that "fit" looks at


def converted_config(config: ModelConfig, to: str) -> ModelConfig:
    """The target's configuration; :class:`EdgeQKVError` where there is no way to it."""
    source = config.attention
    if not isinstance(source, SharedAttention) or source.projections != "QKV":
        raise EdgeQKVError(f"a {config.variant} model cannot be converted; QKV, GQA and MQA can")
    target = with_variant(config, to)
    attention = target.attention
    assert isinstance(attention, SharedAttention)
    if attention.projections != "Q-K=V":
        raise EdgeQKVError(f"--to {to} does not have one cached tensor; Q-K=V, Q-GQA-g and Q-MQA have")
    if source.n_kv_head % attention.n_kv_head:
        raise EdgeQKVError(
            f"--to {to} needs {attention.n_kv_head} KV heads, and the {source.n_kv_head} of a {config.variant} model cannot be "
            f"gathered into so many; take a number that divides {source.n_kv_head}"
        )
    if isinstance(config.positions, Rotary):
        # An unturned value would need channels of its own, as many as are turned: for most models twice the row.
        target = replace(target, positions=replace(config.positions, value="turned"))
    return target


def converted(model: Model, to: str, start: Start, text: Path | None = None) -> Model:
    """The same model with one cached tensor, before healing. Weights that it does not touch stay as they are, those that it
    does have their dtype. ``text`` is what "fit" looks at; None is the sample that ships with the package."""
    config = converted_config(model.config, to)
    source, target = model.config.attention, config.attention
    assert isinstance(source, SharedAttention)
    assert isinstance(target, SharedAttention)
    if start != "mean" and not can_be_fitted(config):
        raise EdgeQKVError(
            f"--start {start} moves a matrix from the keys into the queries and a constant into the output's bias; here "
            "rotary positions or norms lie between, or there is no such bias; take --start mean"
        )
    watched = _watched(model, text) if start == "fit" else {}
    weights = dict[str, np.ndarray]()
    for layer in range(config.n_layer):
        name = f"h.{layer}.attn"
        old = {n: model.weights[f"{name}.{n}"].astype(np.float64) for n in _names(source)}
        new = _mean(source, target, old) if start == "mean" else _factored(source, target, old, watched.get(name))
        weights |= {f"{name}.{n}": w.astype(model.weights[f"{name}.{n}"].dtype) for n, w in new.items()}
    dropped = {f"h.{layer}.attn.v.{kind}" for layer in range(config.n_layer) for kind in ("weight", "bias")}
    kept = {name: model.weights[name] for name in model.weights if name not in dropped}
    return with_fields(model, config=config, weights={**kept, **weights})


def can_be_fitted(config: ModelConfig) -> bool:
    """Whether nothing but products lies between the matrices of queries and keys, and the output has a bias for constants."""
    c = config.attention
    return isinstance(c, SharedAttention) and c.out_bias and not c.qk_norm and not isinstance(config.positions, Rotary)


def _names(c: SharedAttention) -> list[str]:
    return [*(f"{part}.weight" for part in ("q", "k", "v", "proj")), *(f"{p}.bias" for p in ("q", "k", "v") if c.bias)] + (
        ["proj.bias"] if c.out_bias else []
    )


def _mean(source: SharedAttention, target: SharedAttention, old: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def gathered(kind: str) -> np.ndarray:
        both = (old[f"k.{kind}"] + old[f"v.{kind}"]) / 2
        shared: np.ndarray = both.reshape(target.n_kv_head, -1, source.head_dim, *both.shape[1:]).mean(1)
        return shared.reshape(-1, *both.shape[1:])

    return {f"k.{kind}": gathered(kind) for kind in (("weight", "bias") if source.bias else ("weight",))}


def _factored(
    source: SharedAttention, target: SharedAttention, old: Mapping[str, np.ndarray], seen: "Watched | None"
) -> dict[str, np.ndarray]:
    """``seen`` None: of the matrices alone."""
    heads, kv, dim, d_model = source.n_head, source.n_kv_head, source.head_dim, old["k.weight"].shape[1]
    q, proj = old["q.weight"].reshape(heads, dim, d_model), old["proj.weight"].reshape(-1, heads, dim)
    k, v = (old[f"{n}.weight"].reshape(kv, dim, d_model) for n in "kv")
    q_bias = old["q.bias"].reshape(heads, dim) if source.bias else np.zeros((heads, dim))
    v_bias = old["v.bias"].reshape(kv, dim) if source.bias else np.zeros((kv, dim))
    covariance, mean = (np.eye(d_model), np.zeros(d_model)) if seen is None else (seen.covariance, seen.mean)
    root = _root(covariance)
    new_q, new_bias, new_proj = np.empty_like(q), np.empty_like(q_bias), np.empty_like(proj)
    rows, constant = [], np.zeros(len(proj))
    for group in np.split(np.arange(kv), target.n_kv_head):
        readers = {s: np.flatnonzero(np.arange(heads) // (heads // kv) == s) for s in group}
        keys, values = (np.concatenate([w[s] for s in group]) @ root for w in (k, v))
        if seen is not None:
            keys = np.concatenate([_root(seen.queries[readers[s]].sum(0)) @ k[s] @ root for s in group])
            values = np.concatenate([_root(sum(proj[:, h].T @ proj[:, h] for h in readers[s])) @ v[s] @ root for s in group])
            keys, values = keys / np.linalg.norm(keys), values / np.linalg.norm(values)
        _, size, right = np.linalg.svd(np.concatenate([keys, values]), full_matrices=False)
        row = np.linalg.lstsq(root, (size[:dim, None] * right[:dim]).T, rcond=1e-8)[0].T  # [dim, d_model]
        row *= np.linalg.norm(k[group]) / np.sqrt(len(group)) / np.linalg.norm(row)
        rows.append(row)
        back = np.linalg.pinv(row @ root, rcond=1e-8)  # least squares on the inputs: P = K root (C root)⁺
        for s in group:
            key, value = k[s] @ root @ back, v[s] @ root @ back
            lost = (v[s] - value @ row) @ mean + v_bias[s]
            for h in readers[s]:
                new_q[h], new_bias[h] = key.T @ q[h], key.T @ q_bias[h]
                new_proj[:, h] = proj[:, h] @ value
                constant += proj[:, h] @ lost
    new = {
        "q.weight": new_q.reshape(-1, d_model),
        "k.weight": np.concatenate(rows),
        "proj.weight": new_proj.reshape(len(proj), -1),
    }
    if source.bias:
        new |= {"q.bias": new_bias.reshape(-1), "k.bias": np.zeros(target.n_kv_head * dim)}
    if source.out_bias:
        new["proj.bias"] = old["proj.bias"] + constant
    return new


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


class Watched:
    """Of one layer's attention: covariance and mean of its inputs, and E[q qᵀ] of each query head."""

    def __init__(self, d_model: int, heads: int, dim: int) -> None:
        self.count, self.total = 0, np.zeros(d_model)
        self.products, self.squares = np.zeros((d_model, d_model)), np.zeros((heads, dim, dim))

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        return self.products / self.count - np.outer(self.mean, self.mean)

    @property
    def queries(self) -> np.ndarray:
        return self.squares / self.count


class _Watching(EagerVerbs):
    """Eager verbs that add up what goes into the keys and comes out of the queries."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], seen: dict[str, Watched]) -> None:
        super().__init__(config, weights)
        self.seen = seen

    def linear(self, x: Tensor, name: str, width: int, bias: bool) -> Tensor:
        out = super().linear(x, name, width, bias)
        attention, _, part = name.rpartition(".")
        if part in ("q", "k") and attention.endswith(".attn"):
            c = self.config.attention
            assert isinstance(c, SharedAttention)
            held = self.seen.setdefault(attention, Watched(x.shape[-1], c.n_head, c.head_dim))
            if part == "k":
                inputs = x.flatten(0, 1).double().numpy()
                held.count += len(inputs)
                held.total += inputs.sum(0)
                held.products += inputs.T @ inputs
            else:
                heads = heads_of(out.flatten(0, 1), c.n_head).double().numpy()
                held.squares += np.einsum("thi,thj->hij", heads, heads)
        return out


@torch.inference_mode()
def _watched(model: Model, text: Path | None) -> dict[str, Watched]:
    seen = dict[str, Watched]()
    weights = {name: torch.from_numpy(model.weights[name].astype(np.float32)) for name in model.weights}
    verbs = _Watching(model.config, weights, seen)
    for window in token_windows(model, "calibration", text, TOKENS, min(WINDOW, model.config.n_positions)):
        decoder(verbs, model.config, torch.tensor([window]))
    return seen
