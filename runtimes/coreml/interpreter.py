"""Computes a Core ML package in numpy, operation by operation: what the package says, on any machine.

Values between operations are rounded to the dtype that the package declares (fp16); within one, sums are fp32. A device may
round elsewhere. States are the package's fp16 buffers, written in place.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.errors import EdgeQKVError
from edgeqkv.runtimes.coreml.package import Constant, MilFunction, Operation, read_package

_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(x: np.ndarray, mode: np.ndarray) -> np.ndarray:
    if mode != "EXACT":
        raise EdgeQKVError(f"gelu in mode {mode} is not one that the interpreter knows")
    return x * 0.5 * (1 + np.asarray(_erf(x / math.sqrt(2)), np.float32))


def _layer_norm(x: np.ndarray, axes: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    over = tuple(axes.tolist())
    centred = x - x.mean(axis=over, keepdims=True)
    out: np.ndarray = centred / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + epsilon) * gamma + beta
    return out


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    out: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return out


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    out: np.ndarray = x @ weight.T if bias is None else x @ weight.T + bias
    return out


def _matmul(x: np.ndarray, y: np.ndarray, transpose_x: bool, transpose_y: bool) -> np.ndarray:
    out: np.ndarray = (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)
    return out


def _gather(x: np.ndarray, indices: np.ndarray, axis: int, batch_dims: int, validate_indices: bool) -> np.ndarray:
    if batch_dims:
        raise EdgeQKVError("gather with batch_dims is not one that the interpreter knows")
    return x.take(indices, axis=axis)


def _pad(x: np.ndarray, pad: np.ndarray, mode: np.ndarray, constant_val: np.ndarray) -> np.ndarray:
    """``pad`` has two numbers for each of the last axes."""
    if mode != "constant":
        raise EdgeQKVError(f"pad in mode {mode} is not one that the interpreter knows")
    ends = pad.reshape(-1, 2).tolist()
    return np.pad(x, [(0, 0)] * (x.ndim - len(ends)) + ends, constant_values=constant_val)


def _split(
    x: np.ndarray, axis: int, num_splits: np.ndarray | None = None, split_sizes: np.ndarray | None = None
) -> list[np.ndarray]:
    if split_sizes is None:
        return np.split(x, int(np.asarray(num_splits)), axis=axis)
    return np.split(x, np.cumsum(split_sizes)[:-1], axis=axis)


def _concat(values: Sequence[np.ndarray], axis: int, interleave: bool) -> np.ndarray:
    if interleave:
        raise EdgeQKVError("concat that interleaves is not one that the interpreter knows")
    return np.concatenate(values, axis=axis)


def _slices(begin: np.ndarray, end: np.ndarray, begin_mask: Any, end_mask: Any) -> tuple[slice, ...]:
    free = np.zeros(len(begin), bool)
    masks = zip(begin, end, free if begin_mask is None else begin_mask, free if end_mask is None else end_mask, strict=True)
    return tuple(slice(None if no_begin else int(b), None if no_end else int(e)) for b, e, no_begin, no_end in masks)


def _slice_by_index(
    x: np.ndarray, begin: np.ndarray, end: np.ndarray, begin_mask: Any = None, end_mask: Any = None
) -> np.ndarray:
    return x[_slices(begin, end, begin_mask, end_mask)]


def _slice_update(
    x: np.ndarray, update: np.ndarray, begin: np.ndarray, end: np.ndarray, begin_mask: Any = None, end_mask: Any = None
) -> np.ndarray:
    """Into ``x`` itself: the caller gives a copy where the old values are still needed."""
    x[_slices(begin, end, begin_mask, end_mask)] = update
    return x


OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,  # the declared dtype of the output says the rest
    "concat": _concat,
    "equal": lambda x, y: x == y,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "floor_div": lambda x, y: x // y,
    "gather": _gather,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "less_equal": lambda x, y: x <= y,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mod": lambda x, y: x % y,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "reduce_max": lambda x, axes, keep_dims: x.max(axis=tuple(axes.tolist()), keepdims=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axis=tuple(axes.tolist()), keepdims=bool(keep_dims)),
    "reshape": lambda x, shape: x.reshape(shape),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "slice_by_index": _slice_by_index,
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": _split,
    "sqrt": lambda x: np.sqrt(x),
    "stack": lambda values, axis: np.stack(values, axis=axis),
    "sub": lambda x, y: x - y,
    "tile": lambda x, reps: np.tile(x, reps),
    "transpose": lambda x, perm: x.transpose(perm),
}
STATE_OPERATIONS = ("read_state", "write_state")
CONSTANTS = ("const", "constexpr_blockwise_shift_scale")
Operand = Any  # an array, a variable's name, or a tuple of these


@dataclass(frozen=True)
class Step:
    """``in_place``: this read_state or slice_update works on the state's own buffer, which nobody else looks at meanwhile."""

    kind: str
    inputs: dict[str, Operand]
    outputs: tuple[tuple[str, str], ...]
    in_place: bool


class Interpreter:
    """``functions`` are those of the package. Weights are dequantised once, to fp32 arrays that the functions share."""

    def __init__(self, package: Path) -> None:
        self.functions = read_package(package)
        self._weights: dict[tuple[int, ...], np.ndarray] = {}
        self._steps = {name: self._prepare(function, package) for name, function in self.functions.items()}

    def new_states(self, function: str) -> dict[str, np.ndarray]:
        """Zeroed buffers for every state of a function, by name."""
        return {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.functions[function].states.items()}

    def read_state(self, states: dict[str, np.ndarray], name: str) -> np.ndarray:
        return states[name]

    def write_state(self, states: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
        states[name][...] = value

    def run(self, function: str, inputs: Mapping[str, np.ndarray], states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The function's outputs by name; ``states`` are changed."""
        variables: dict[str, Any] = dict(inputs)

        def fetch(operand: Operand) -> Any:
            if isinstance(operand, str):
                return variables[operand]
            return [fetch(part) for part in operand] if isinstance(operand, tuple) else operand

        for step in self._steps[function]:
            if step.kind == "read_state":
                state = states[step.inputs["input"]]
                variables[step.outputs[0][0]] = state if step.in_place else state.astype(np.float32)
            elif step.kind == "write_state":
                state, data = states[step.inputs["input"]], fetch(step.inputs["data"])
                if data is not state:
                    state[...] = data
            else:
                arguments = {name: fetch(operand) for name, operand in step.inputs.items()}
                if step.kind == "slice_update" and not step.in_place:
                    arguments["x"] = arguments["x"].copy()
                with np.errstate(over="ignore", invalid="ignore"):  # beyond fp16 is infinite, as on a device; verify tells
                    made = OPERATIONS[step.kind](**arguments)
                    for (name, dtype), value in zip(step.outputs, made if isinstance(made, list) else [made], strict=True):
                        variables[name] = value if step.in_place else _rounded(value, dtype)
        return {name: variables[name] for name in self.functions[function].outputs}

    def _prepare(self, function: MilFunction, package: Path) -> tuple[Step, ...]:
        constants: dict[str, Any] = {}
        steps = []
        in_place = _in_place(function)
        for op in function.operations:
            if op.kind == "const":
                constants[op.outputs[0][0]] = self._operand("val", op.inputs["val"], constants)
            elif op.kind == "constexpr_blockwise_shift_scale":
                constants[op.outputs[0][0]] = self._dequantized(op)
            elif op.kind not in OPERATIONS and op.kind not in STATE_OPERATIONS:
                raise EdgeQKVError(f"{package}: the operation {op.kind} is not one that the interpreter knows")
            else:
                inputs = {name: self._operand(name, parts, constants) for name, parts in op.inputs.items()}
                names = {name for name, _ in op.outputs}
                steps.append(Step(op.kind, inputs, op.outputs, bool(names & in_place)))
        return tuple(steps)

    def _operand(self, parameter: str, parts: tuple[str | Constant, ...], constants: dict[str, Any]) -> Operand:
        found = tuple(constants.get(p, p) if isinstance(p, str) else self._plain(p) for p in parts)
        return found if parameter == "values" else found[0]

    def _plain(self, constant: Constant) -> np.ndarray:
        value = constant.value
        if constant.offset is None:
            return _rounded(value, str(value.dtype))
        if (constant.offset,) not in self._weights:
            self._weights[(constant.offset,)] = _rounded(value, str(value.dtype))
        return self._weights[(constant.offset,)]

    def _dequantized(self, op: Operation) -> np.ndarray:
        """scale * data, as fp16 holds it: symmetric, with one scale for so many values along each axis."""
        if set(op.inputs) != {"data", "scale"}:
            raise EdgeQKVError("constexpr_blockwise_shift_scale with an offset is not one that the interpreter knows")
        ((data,), (scale,)) = op.inputs["data"], op.inputs["scale"]
        if isinstance(data, str) or isinstance(scale, str):
            raise EdgeQKVError("constexpr_blockwise_shift_scale of a variable is not one that the interpreter knows")
        key = tuple(-1 if constant.offset is None else constant.offset for constant in (data, scale))
        if key not in self._weights or -1 in key:
            scales = scale.value.astype(np.float32)
            for axis, (count, held) in enumerate(zip(data.value.shape, scale.value.shape, strict=True)):
                scales = scales if held in (1, count) else scales.repeat(count // held, axis=axis)
            self._weights[key] = _rounded(data.value * scales, op.outputs[0][1])
        return self._weights[key]


def _rounded(value: Any, dtype: str) -> np.ndarray:
    """``value`` as ``dtype`` holds it. fp16 values are carried in fp32, in which numpy computes faster."""
    if dtype == "float16":
        return np.asarray(value).astype(np.float16).astype(np.float32)
    return np.asarray(value, dtype)


def _in_place(function: MilFunction) -> set[str]:
    """Outputs of read_state and slice_update that may be the state's buffer: read_state → slice_update → write_state on one
    state, with no other reader of what lies between."""
    readers = Counter(p for op in function.operations for parts in op.inputs.values() for p in parts if isinstance(p, str))
    readers.update(function.outputs)
    made = {name: op for op in function.operations for name, _ in op.outputs}
    found: set[str] = set()
    for write in function.operations:
        if write.kind != "write_state":
            continue
        update = made.get(str(write.inputs["data"][0]))
        if update is None or update.kind != "slice_update" or readers[update.outputs[0][0]] > 1:
            continue
        read = made.get(str(update.inputs["x"][0]))
        if read is None or read.kind != "read_state" or readers[read.outputs[0][0]] > 1:
            continue
        if read.inputs["input"] == write.inputs["input"]:
            found |= {update.outputs[0][0], read.outputs[0][0]}
    return found
