"""Ways to round to int4, on the models in models/: ``python experiments/int4_methods.py`` (make compare-int4).

Each method rounds every matrix of a model in blocks; the result runs in eager PyTorch, so that weights alone are compared, and
never a runtime. Calibrated methods see edgeqkv/texts/calibration.txt; loss is measured on held_out.txt.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from edgeqkv.corpus import token_windows
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.export.calibrate import round_matrices
from edgeqkv.export.int4 import searched
from edgeqkv.model_folder import Model, read_model
from edgeqkv.tables import table
from edgeqkv.weights import TABLES, BlockInt4, Formats, Plain, WeightFormat, block_int4, block_int8, in_int4

MODELS = ("qkv", "q-kv", "q-mqa")
TOKENS, WINDOW = 4096, 512
KINDS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc", "mlp.proj", "wte")
AWQ_POWERS = np.linspace(0, 1, 11)
NORMS = {"ln_1": ("attn.q", "attn.k", "attn.v"), "ln_2": ("mlp.fc", "mlp.gate")}  # and the linears that read them

Weights = dict[str, np.ndarray]
Quantize = Callable[[BlockInt4, np.ndarray], tuple[np.ndarray, np.ndarray]]


def formats_of(block: int, tables: int | None, scheme: str = "int4", mixed: bool = True) -> Formats:
    """``tables`` is the block of an embedding and head in int4; None keeps them in int8. Without ``mixed`` int4 is for all."""

    def choose(name: str, shape: tuple[int, ...]) -> WeightFormat:
        if len(shape) < 2 or name == "wpe.weight":
            return Plain("float32")
        if scheme == "int8" or (name in TABLES and tables is None) or (mixed and not in_int4("int4-all", name, shape)):
            return block_int8(shape[-1])
        return block_int4(shape[-1], tables if name in TABLES and tables else block, 16)

    return choose


def alone(kind: str) -> Formats:
    """One kind of matrix in int4, the others in int8: how much it is harmed."""
    return lambda name, shape: (WITHOUT_MIXING if kind in name else INT8)(name, shape)


INT8 = formats_of(128, None, "int8")
WITHOUT_MIXING = formats_of(128, 128, mixed=False)
INT4, INT4_ALL = formats_of(128, None), formats_of(128, 128)


def one_by_one(weights: Weights, formats: Formats, quantize: Quantize) -> Weights:
    out = dict(weights)
    for name, weight in weights.items():
        form = formats(name, weight.shape)
        if not isinstance(form, Plain):
            out[name] = form.restore(*(quantize(form, weight) if isinstance(form, BlockInt4) else form.quantize(weight)))
    return out


def hqq(form: BlockInt4, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-quadratic quantisation (Badri and Shaji, 2023) without a zero point: it is the scale that is optimised. The error is
    split into a sparse part, by the shrinkage of its 0.7 norm, and a rest that the scale fits. In units of the first scale."""
    blocks = form.blocks(weight)
    unit = np.abs(blocks).max(2, keepdims=True) / form.HIGH
    unit[unit == 0] = 1
    blocks, scale, beta = blocks / unit, np.ones_like(unit), 10.0
    best, chosen = np.full(unit.shape, np.inf), scale
    for _ in range(20):
        values = np.clip(np.rint(blocks / scale), form.LOW, form.HIGH)
        rest = blocks - values * scale
        error = (np.abs(rest) ** 0.7).sum(2, keepdims=True)
        best, chosen = np.minimum(best, error), np.where(error < best, scale, chosen)
        size = np.abs(rest)
        sparse = np.sign(rest) * np.maximum(size - np.maximum(size, 1e-8) ** -0.3 / beta, 0)
        fit = (values * (blocks - sparse)).sum(2, keepdims=True) / np.maximum(np.square(values).sum(2, keepdims=True), 1)
        scale, beta = np.where(fit > 0, fit, scale), beta * 1.01
    return form.rounded(weight, (chosen * unit)[:, :, 0])


class _Inputs(EagerVerbs):
    """Remembers the mean of xᵀx of what each linear reads."""

    def __init__(self, model: Model, weights: dict[str, torch.Tensor]) -> None:
        super().__init__(model.config, weights)
        self.products: dict[str, torch.Tensor] = {}

    def linear(self, x: torch.Tensor, name: str, width: int, bias: bool) -> torch.Tensor:
        flat = x.flatten(0, -2)
        self.products[name] = flat.T @ flat / len(flat)
        return super().linear(x, name, width, bias)


def awq(model: Model, weights: Weights, formats: Formats) -> Weights:
    """Activation-aware scaling (Lin et al., arXiv 2306.00978): channels with large inputs are made larger before rounding, by
    a power of their size that loses least, and the norm before them smaller. Where no norm stands before a linear (here the
    output projections, behind attention and GELU) it is rounded as it is. Scales are searched."""
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    verbs = _Inputs(model, tensors)
    decoder(verbs, model.config, torch.tensor(windows(model, "calibration")), True)
    scaled, back = dict(weights), dict[str, np.ndarray]()
    for layer in range(model.config.n_layer):
        for norm, linears in NORMS.items():
            names = [f"h.{layer}.{linear}" for linear in linears if f"h.{layer}.{linear}.weight" in weights]
            products = verbs.products[names[0]].numpy()
            size = np.sqrt(np.diag(products))

            def loss(factor: np.ndarray, names: list[str] = names, products: np.ndarray = products) -> float:
                total = 0.0
                for name in names:
                    weight = weights[f"{name}.weight"]
                    form = formats(f"{name}.weight", weight.shape)
                    assert not isinstance(form, Plain)
                    quantize = searched if isinstance(form, BlockInt4) else type(form).quantize
                    error = form.restore(*quantize(form, weight * factor)) / factor - weight  # type: ignore[arg-type]
                    total += float(((error @ products) * error).sum())
                return total

            tried = [(size + 1e-8) ** power for power in AWQ_POWERS]
            factor = min((f / np.sqrt(f.max() * f.min()) for f in tried), key=loss).astype(np.float32)
            for name in names:
                scaled[f"{name}.weight"] = weights[f"{name}.weight"] * factor
            for part in ("weight", "bias"):
                back[f"h.{layer}.{norm}.{part}"] = weights[f"h.{layer}.{norm}.{part}"] / factor
    return one_by_one(scaled | back, formats, searched)


def gptq(model: Model, weights: Weights, formats: Formats) -> Weights:
    """As export does it."""
    out = one_by_one(weights, formats, BlockInt4.quantize)

    def keep(name: str, values: np.ndarray, scales: np.ndarray) -> None:
        form = formats(name, values.shape)
        assert isinstance(form, BlockInt4)
        out[name] = form.restore(values, scales)

    round_matrices(model, formats, None, keep)
    return out


def windows(model: Model, purpose: str) -> list[list[int]]:
    found = token_windows(model, purpose, None, 2 * TOKENS if purpose == "calibration" else TOKENS, WINDOW)  # type: ignore[arg-type]
    return [window for window in found if len(window) == WINDOW]


def log_probabilities(model: Model, weights: Weights, text: torch.Tensor) -> torch.Tensor:
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    return F.log_softmax(decoder(EagerVerbs(model.config, tensors), model.config, text, True), -1)


@torch.inference_mode()
def main() -> None:
    rows = []
    for name in MODELS:
        model = read_model(Path("models") / name)
        weights = {key: model.weights[key].astype(np.float32) for key in model.weights}
        text = torch.tensor(windows(model, "held_out"))
        reference = log_probabilities(model, weights, text)
        perplexity = F.nll_loss(reference[:, :-1].flatten(0, 1), text[:, 1:].flatten()).exp()
        cases: dict[str, Callable[[], Weights]] = {
            "int8": lambda w=weights: one_by_one(w, INT8, BlockInt4.quantize),
            "int4: to the nearest": lambda w=weights: one_by_one(w, INT4, BlockInt4.quantize),
            "int4: HQQ": lambda w=weights: one_by_one(w, INT4, hqq),
            "int4: searched scales": lambda w=weights: one_by_one(w, INT4, searched),
            "int4: AWQ": lambda w=weights, m=model: awq(m, w, INT4),
            "int4: GPTQ": lambda w=weights, m=model: gptq(m, w, INT4),
            "int4: GPTQ, blocks of 32": lambda w=weights, m=model: gptq(m, w, formats_of(32, None)),
            "int4-all: to the nearest": lambda w=weights: one_by_one(w, INT4_ALL, BlockInt4.quantize),
            "int4-all: GPTQ": lambda w=weights, m=model: gptq(m, w, INT4_ALL),
            "int4-all: GPTQ, blocks of 32": lambda w=weights, m=model: gptq(m, w, formats_of(32, 32)),
        }
        cases |= {
            f"GPTQ, {kind} alone": lambda w=weights, m=model, k=kind: gptq(m, w, alone(k))
            for kind in KINDS
            if any(kind in key for key in weights)
        }
        for case, make in cases.items():
            ours = log_probabilities(model, make(), text)
            kl = (reference.exp() * (reference - ours)).sum(-1).mean()
            moved = F.nll_loss(ours[:, :-1].flatten(0, 1), text[:, 1:].flatten()).exp() / perplexity - 1
            rows.append([model.config.variant, case, f"{kl:.1e}", f"{100 * moved:+.2f} %"])
            print(*rows[-1], sep="  ", flush=True)
    print("\n" + table(["model", "weights", "mean KL nats", "perplexity"], rows))


if __name__ == "__main__":
    main()
