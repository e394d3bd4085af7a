"""Our operators, as the exporter sees them: names, arguments and the shapes of results. It never computes with them.

Tensors marked (x!) are updated in place. What each argument is says runtimes/executorch/cached_attention.cc; a channel's number
counts within one head's row.
"""

from typing import Any, cast

import torch
from torch import Tensor

_ATTENTION = (
    "Tensor q, Tensor k, Tensor? v, Tensor position, Tensor? count, "
    "Tensor(a!) k_cache, Tensor(b!)? k_scale, Tensor(c!)? v_cache, Tensor(d!)? v_scale, "
    "int n_head, int key_dim, int value_start, int value_dim, int scale_split, float softmax_scale"
)
_HEAD_LINEAR = "Tensor x, Tensor weight, Tensor scale"


def _attention_shape(q: Tensor, *others: Any) -> Tensor:
    n_head, value_dim = others[8], others[11]
    return q.new_empty(*q.shape[:2], n_head * value_dim)


def _head_linear_shape(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[0] * weight.shape[1])


_library = cast(Any, torch.library.Library)("edgeqkv", "DEF")
for _name, _arguments, _shape in (
    ("cached_attention", _ATTENTION, _attention_shape),
    ("head_linear", _HEAD_LINEAR, _head_linear_shape),
):
    _library.define(f"{_name}({_arguments}) -> Tensor")
    _library.define(f"{_name}.out({_arguments}, *, Tensor(e!) out) -> Tensor(e!)")
    _library.impl(_name, _shape, "Meta")
    _library.impl(f"{_name}.out", lambda *arguments, out: out, "Meta")
