"""How alike the projections of attention are, and how many directions each uses: what ``edgeqkv inspect --attention`` shows.

Of the weights alone, without their biases, by layer:

- cosine: of two matrices as vectors, sum(A * B) / (|A| |B|). Where KV heads are shared, each query head is compared with the
  KV head that it reads. Attention stays the same function when the values of a head are turned and the output projection is
  turned back, but this number does not.
- CKA: linear centred kernel alignment (Kornblith et al., arXiv 1905.00414) of the projections of inputs with unit covariance,
  |A Bᵀ|² / (|A Aᵀ| |B Bᵀ|) with Frobenius norms. 1 for equal subspaces, used alike; it does not see turns.
- effective rank: exp of the entropy of the singular values over their sum (Roy and Vetterli, EUSIPCO 2007).
"""

from collections.abc import Mapping

import numpy as np

from edgeqkv.config import ModelConfig, SharedAttention
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model
from edgeqkv.report.drawing import Axis, Drawing, Series, lines
from edgeqkv.strict import Strict
from edgeqkv.tables import table

WIDTH = 920.0
PAIRS = {
    "cosine_kv": "cosine of K and V",
    "cosine_qk": "cosine of Q and K",
    "cka_kv": "CKA of K and V",
    "cka_qk": "CKA of Q and K",
}


class Projections(Strict, frozen=True):
    """One layer. A pair that is one matrix has None, and so has the rank of a projection that another one stands in for.
    ``widest`` is the largest rank that each could have."""

    layer: int
    cosine_kv: float | None
    cosine_qk: float | None
    cka_kv: float | None
    cka_qk: float | None
    rank: dict[str, float | None]
    widest: dict[str, int]


def projections(model: Model) -> list[Projections]:
    """Layer by layer, from a model of any source. Latent attention has no such matrices and is refused."""
    if not isinstance(model.config.attention, SharedAttention):
        raise EdgeQKVError(f"a {model.config.variant} model has no projections q, k and v to compare")
    return [_layer(model.config, model.config.attention, model.weights, layer) for layer in range(model.config.n_layer)]


def _layer(config: ModelConfig, c: SharedAttention, weights: Mapping[str, np.ndarray], layer: int) -> Projections:
    def read(part: str) -> np.ndarray:
        return weights[f"h.{layer}.attn.{part}.weight"].astype(np.float64)

    k = read("k")
    q, v = None if c.q_is_k else read("q"), None if c.v_is_k else read("v")
    of_query_heads = np.repeat(k.reshape(c.n_kv_head, c.head_dim, -1), c.n_head // c.n_kv_head, axis=0).reshape(-1, k.shape[1])
    present = {"q": q, "k": k, "v": v}
    return Projections(
        layer=layer,
        cosine_kv=None if v is None else cosine(k, v),
        cosine_qk=None if q is None else cosine(q, of_query_heads),
        cka_kv=None if v is None else cka(k, v),
        cka_qk=None if q is None else cka(q, k),
        rank={name: None if w is None else effective_rank(w) for name, w in present.items()},
        widest={name: min(w.shape) for name, w in present.items() if w is not None},
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Of matrices [rows, inputs] whose rows need not be as many."""
    return float(np.linalg.norm(a @ b.T) ** 2 / (np.linalg.norm(a @ a.T) * np.linalg.norm(b @ b.T)))


def effective_rank(matrix: np.ndarray) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def projections_table(found: list[Projections]) -> str:
    """What reads "same" is one matrix with another."""
    rows = [
        [
            str(p.layer),
            *("same" if value is None else f"{value:.3f}" for value in (p.cosine_kv, p.cosine_qk, p.cka_kv, p.cka_qk)),
            *("same" if p.rank[name] is None else f"{p.rank[name]:.1f} of {p.widest[name]}" for name in "qkv"),
        ]
        for p in found
    ]
    rows.append(["mean", *(_mean([getattr(p, field) for p in found]) for field in PAIRS), "", "", ""])
    return table(["layer", *PAIRS.values(), "effective rank of Q", "of K", "of V"], rows)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "same"


def projections_drawing(found: list[Projections], title: str) -> Drawing:
    """Similarities, and effective ranks as shares of the largest possible, over the layers."""
    drawn = {label: [(p.layer, getattr(p, field)) for p in found] for field, label in PAIRS.items()}
    for name in "qkv":
        shares = [(p.layer, None if (rank := p.rank[name]) is None else rank / p.widest[name]) for p in found]
        drawn[f"effective rank of {name.upper()}, share of the largest"] = shares
    series = [
        Series(label, i, tuple((float(x), y, f"{y:.3f} in layer {x}") for x, y in points if y is not None))
        for i, (label, points) in enumerate(drawn.items())
    ]
    shown = [one for one in series if one.points]
    low = min(0.0, *(y for one in shown for _, y, _ in one.points))
    return lines(title, shown, Axis("layer"), Axis("similarity, and share of the rank", low=low), WIDTH)
