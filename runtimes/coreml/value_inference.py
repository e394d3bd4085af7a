"""Computes a Core ML package with Apple's own definition of each operation: coremltools' ``value_inference``.

coremltools reads the package and evaluates every operation; of ours is only the walk from one operation to the next and what
a state does. It shares nothing with :mod:`edgeqkv.runtimes.coreml.interpreter`, so that an error would have to be made twice,
and alike. Each operation is evaluated in fp32 and rounded to the dtype that the package declares. Slow.
"""

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.errors import EdgeQKVError
from edgeqkv.runtimes.coreml.package import WEIGHTS_FOLDER, require_coremltools


class ValueInference:
    """The same calls as :class:`~edgeqkv.runtimes.coreml.interpreter.Interpreter`."""

    def __init__(self, package: Path) -> None:
        ct = require_coremltools()
        _let_numpy_reduce()
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = ct.utils.load_spec(str(package))
        program = load(spec, spec.specificationVersion, str(package / WEIGHTS_FOLDER))
        self._functions = {name: (function, _constants(function)) for name, function in program.functions.items()}

    def new_states(self, function: str) -> dict[str, np.ndarray]:
        inputs = self._functions[function][0].inputs
        return {name: np.zeros(var.shape, np.float16) for name, var in inputs.items() if hasattr(var.sym_type, "wrapped_type")}

    def read_state(self, states: dict[str, np.ndarray], name: str) -> np.ndarray:
        return states[name]

    def write_state(self, states: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
        states[name][...] = value

    def run(self, function: str, inputs: dict[str, np.ndarray], states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        block, constants = self._functions[function]
        values: dict[str, Any] = constants | inputs
        for op in block.operations:
            if op.outputs[0].name in constants:
                continue
            if op.op_type == "read_state":
                made = [states[op.input.name].copy()]
            elif op.op_type == "coreml_update_state":
                states[op.state.name][...] = values[op.value.name]
                made = [states[op.state.name].copy()]
            else:
                made = _evaluate(op, values)
            for var, value in zip(op.outputs, made, strict=True):
                values[var.name] = value
        gc.collect()  # coremltools' operations refer to each other, and here they hold copies of the weights
        return {var.name: values[var.name] for var in block.outputs}


@functools.cache
def _let_numpy_reduce() -> None:
    """numpy refuses its own bool as ``keepdims`` since 2.4, and coremltools 9.0 hands it one."""
    from coremltools.converters.mil.mil.ops.defs.iOS15 import reduce_max, reduce_mean

    def with_bool(get_operator: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda op: lambda x, axis, keepdims: get_operator(op)(x, axis=axis, keepdims=bool(keepdims))

    for kind in (reduce_max, reduce_mean):
        kind.get_operator = with_bool(kind.get_operator)


def _constants(function: Any) -> dict[str, Any]:
    found = {}
    for op in function.operations:
        if op.op_type == "const":
            found[op.outputs[0].name] = op.outputs[0].val
        elif op.op_type.startswith("constexpr_"):
            found[op.outputs[0].name] = op.materialized_val_inference()
    return found


def _evaluate(op: Any, values: dict[str, Any]) -> list[Any]:
    """An operation with constants in place of its inputs: making it makes coremltools evaluate it."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, types

    def known(var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [known(part) for part in var]
        value = values[var.name]
        return np.asarray(value, np.float32) if getattr(value, "dtype", None) == np.float16 else value

    with Function({}, opset_version=ct.target.iOS18):
        arguments = {name: known(var) for name, var in op.inputs.items() if var is not None}
        out = getattr(mb, op.op_type)(**arguments)
    made = out if isinstance(out, (list, tuple)) else [out]
    if any(var.val is None for var in made):
        raise EdgeQKVError(f"coremltools cannot evaluate the operation {op.op_type} ({op.name})")
    dtypes = [types.nptype_from_builtin(var.dtype) for var in op.outputs]
    return [np.asarray(var.val).astype(dtype) for var, dtype in zip(made, dtypes, strict=True)]
