"""How one matrix becomes int4 with a small loss: the scales by search, the values by GPTQ.

Both work on a matrix [rows, columns] of a linear, x times its transpose, and give what
:meth:`edgeqkv.weights.BlockInt4.quantize` gives. How they compare with others, and why these: docs/weights.md.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeqkv.weights import BlockInt4

if TYPE_CHECKING:
    from torch import Tensor

# Of max|block| / 7, tried in turn: below 1 the largest values are clipped and the others rounded finer; with 7/8, -8 is used
# too, which has no positive twin.
FACTORS = tuple(float(factor) for factor in np.linspace(0.6, 1.1, 16))
DAMPING = 0.01  # of the mean of the diagonal, as GPTQ's authors take it
COLUMNS_AT_ONCE = 128  # after so many, the rest of a matrix is corrected in one product
ROWS_AT_ONCE = 4096  # rows are independent of each other; a whole table would lie in memory several times over


def searched(form: BlockInt4, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounded to the nearest under :func:`searched_scales`: what can be done without a text."""
    parts = [form.rounded(rows, searched_scales(form, rows)) for rows in _some_rows(weight)]
    values, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values, scales


def searched_scales(form: BlockInt4, weight: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Scales float32 [rows, blocks] with the least squared error of each block, of so many that are tried.

    ``importance`` [columns] weighs the squares: the mean square of each input of the linear. For each of :data:`FACTORS` the
    values are rounded, and the scale is then the one that fits these values best, <b, q> / <q, q>.
    """
    blocks = form.blocks(weight)
    weights = np.ones((1, *blocks.shape[1:]), np.float32)
    if importance is not None:
        weights = importance.astype(np.float32).reshape(weights.shape)
    largest = np.abs(blocks).max(axis=2) / form.HIGH
    start = np.where(largest == 0, np.float32(1), largest)
    best, scales = np.full(start.shape, np.inf, np.float32), start
    weighted = weights * blocks
    for factor in FACTORS:
        values = np.clip(np.rint(blocks / (factor * start)[:, :, None]), form.LOW, form.HIGH)
        along = np.einsum("rbi,rbi->rb", weighted, values)  # the error is |b|² - <b, q>² / <q, q>
        square = np.einsum("rbi,rbi->rb", weights * values, values)
        fitted = along / np.where(square == 0, np.float32(1), square)
        gain = -fitted * along
        better = (gain < best) & (fitted > 0)
        best, scales = np.where(better, gain, best), np.where(better, fitted, scales)
    return scales


def gptq(form: BlockInt4, weight: np.ndarray, products: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    """GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and what each loses is made good by the
    columns that are still to come, as far as the inputs of the linear go together.

    ``products`` [columns, columns] is the mean of xᵀx over the inputs. The columns with the largest inputs come first, while
    blocks stay where they are (its authors' code calls it act-order with static groups), and scales are searched before,
    weighted by the inputs. With products that say nothing (a multiple of the identity) this is :func:`searched`.
    """
    import torch

    hessian = products.double()
    diagonal = hessian.diagonal().clone()
    mean = float(diagonal.mean())
    hessian.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    order = torch.argsort(diagonal, descending=True, stable=True)
    upper = _inverse_factor(hessian[order][:, order]).float()
    importance = hessian.diagonal().numpy()
    parts = [
        _gptq_rows(form, rows, form.held(searched_scales(form, rows, importance)), order, upper) for rows in _some_rows(weight)
    ]
    values, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values, scales


def _gptq_rows(
    form: BlockInt4, weight: np.ndarray, scales: np.ndarray, order: "Tensor", upper: "Tensor"
) -> tuple[np.ndarray, np.ndarray]:
    """``upper`` is the factor of the inverse, its columns in ``order``. Works on the transpose, whose rows are columns."""
    import torch

    left = torch.from_numpy(np.ascontiguousarray(weight.T, np.float32))[order]
    steps = torch.from_numpy(scales).T.repeat_interleave(form.block, 0)[order]
    values = torch.empty(left.shape, dtype=torch.int8)
    for start in range(0, len(left), COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, len(left))
        errors = torch.empty(end - start, left.shape[1])
        for i in range(start, end):
            rounded = (left[i] / steps[i]).round_().clamp_(form.LOW, form.HIGH)
            values[i] = rounded
            error = (left[i] - rounded * steps[i]) / upper[i, i]
            left[i + 1 : end].addr_(upper[i, i + 1 : end], error, alpha=-1)
            errors[i - start] = error
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    placed = torch.empty_like(values)
    placed[order] = values
    return placed.T.contiguous().numpy(), scales


def _inverse_factor(hessian: "Tensor") -> Any:
    """The upper triangular U with Uᵀ U the inverse. Turned round, a lower factor L Lᵀ of the matrix is R Rᵀ with R upper, so
    that U is the inverse of R: half the work of inverting first."""
    import torch

    lower = torch.linalg.cholesky(hessian.flip(0, 1))
    unit = torch.eye(len(lower), dtype=lower.dtype)
    return torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1)


def _some_rows(weight: np.ndarray) -> list[np.ndarray]:
    return [weight[start : start + ROWS_AT_ONCE] for start in range(0, len(weight), ROWS_AT_ONCE)]
