"""The decoder's verbs as operations of MIL."""

from functools import partial
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function
from coremltools.converters.mil.mil.types.type_mapping import np_int4_dtype

from edgeqkv.cache import CacheLayout, cache_name, identifier
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.decoder import absorbed
from edgeqkv.export.coreml.limits import head_rows
from edgeqkv.export.coreml.stored import Stored, StoredWeights
from edgeqkv.rotary import turns

HIDDEN = -4e4  # added to scores behind the mask: exp of it is 0, and no sum with a score leaves fp16


class CoremlVerbs:
    """Records operations into the MIL function that is open; ``tokens`` is how many ids it takes.

    Everything is fp16, activations [1, tokens, width]. Where a verb works on heads, it does so on [tokens, heads, channels].
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: CacheLayout,
        weights: StoredWeights,
        head_parts: int | None,
        function: Function,
        tokens: int,
    ) -> None:
        self.config, self.layout, self.weights, self.tokens = config, layout, weights, tokens
        self.values: dict[str, Any] = {}
        self.count = 0
        rows = head_rows(config.vocab_size, head_parts)
        self.cuts = [(start, min(start + rows, config.vocab_size)) for start in range(0, config.vocab_size, rows)]
        self.ids, self.position = function.inputs["ids"], function.inputs["position"]
        self.states = {name: function.inputs[identifier(name)] for name in layout.names}
        # What every layer needs to know about the step is computed once.
        self.mask = self._causal_mask()
        middle = self.op("add", x=self.position, y=_ints(tokens))
        self.begin = self.op("concat", values=[_ints(0, 0), self.position, _ints(0)], axis=0)
        self.end = self.op("concat", values=[_ints(0, 0), middle, _ints(0)], axis=0)
        self.angles: Any = self._angles(config.positions) if isinstance(config.positions, Rotary) else None

    # -- building blocks ------------------------------------------------------------------------------------------

    def op(self, kind: str, **inputs: Any) -> Any:
        """Names count up, so that the same export gives the same bytes."""
        self.count += 1
        return getattr(mb, kind)(**inputs, name=f"{kind}_{self.count}")

    def constant(self, name: str, array: np.ndarray) -> Any:
        """The weight_id is how coremltools knows one tensor in two functions, and writes it once."""
        if name not in self.values:
            value = mb.const(val=array, name=identifier(name))
            value.op.weight_id = name
            self.values[name] = value
        return self.values[name]

    def tensor(self, stored: Stored) -> Any:
        """A weight; Core ML dequantises what is int8 or int4."""
        name = stored.name
        if stored.scale is None:
            return self.constant(name, stored.data)
        if name not in self.values:
            values = stored.data.astype(np_int4_dtype) if stored.int4 else stored.data
            kind = "int4" if stored.int4 else "int8"
            data, scale = self.constant(f"{name}.{kind}", values), self.constant(f"{name}.scale", stored.scale)
            self.values[name] = mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=identifier(name))
        return self.values[name]

    def weight(self, name: str) -> Any:
        return self.tensor(self.weights.tensor(name))

    def table(self, name: str) -> list[Any]:
        """An embedding or head in the parts that it is cut into."""
        return [self.tensor(part) for part in self.weights.parts(name, self.cuts)]

    def reshape(self, x: Any, *shape: int) -> Any:
        return self.op("reshape", x=x, shape=shape)

    def by_head(self, x: Any, n_head: int) -> Any:
        return self.reshape(x, self.tokens, n_head, x.shape[-1] // n_head)

    def side_by_side(self, x: Any) -> Any:
        """[tokens, heads, ...] as [1, tokens, width]."""
        return self.reshape(x, 1, self.tokens, int(np.prod(x.shape[1:])))

    # -- verbs ----------------------------------------------------------------------------------------------------

    def embed(self, name: str, ids: Any) -> Any:
        """When a tied head is in parts, so is the embedding: each is asked and the right answer selected."""
        tables = self.table(f"{name}.weight")
        if len(tables) == 1:
            return self.op("gather", x=tables[0], indices=ids, axis=0)
        rows, out = np.int32(self.cuts[0][1]), None
        part, row = self.op("floor_div", x=ids, y=rows), self.op("mod", x=ids, y=rows)
        for i, (table, (start, end)) in enumerate(zip(tables, self.cuts, strict=True)):
            inside = row if end - start == rows else self.op("minimum", x=row, y=np.int32(end - start - 1))
            found = self.op("gather", x=table, indices=inside, axis=0)
            here = self.op("expand_dims", x=self.op("equal", x=part, y=np.int32(i)), axes=[2])
            out = found if out is None else self.op("select", cond=here, a=found, b=out)
        return out

    def embed_positions(self, name: str, ids: Any) -> Any:
        table = self.constant(name, self.weights.positions(f"{name}.weight", self.layout.capacity))
        steps = np.arange(self.tokens, dtype=np.int32)[None]
        return self.op("gather", x=table, indices=self.op("add", x=self.position, y=steps), axis=0)

    def norm(self, x: Any, name: str, eps: float) -> Any:
        gamma = self.weight(f"{name}.weight")
        if self.config.norm.kind == "layer_norm":
            beta = self.weight(f"{name}.bias")
            return self.op("layer_norm", x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float16(eps))
        return self.op("mul", x=self._rms_scaled(x, eps), y=gamma)

    def head_norm(self, x: Any, name: str, n_head: int, eps: float) -> Any:
        return self.side_by_side(self.norm(self.by_head(x, n_head), name, eps))

    def linear(self, x: Any, name: str, width: int, bias: bool) -> Any:
        inputs = {"bias": self.weight(f"{name}.bias")} if bias else {}
        return self.op("linear", x=x, weight=self.weight(f"{name}.weight"), **inputs)

    def head_linear(self, x: Any, name: str, n_head: int, width: int) -> Any:
        heads = self._heads_first(x, n_head)
        out = self.op("matmul", x=heads, y=self.weight(f"{name}.weight"), transpose_y=True)  # [n_head, tokens, width]
        if self.tokens > 1:
            out = self.op("transpose", x=out, perm=[1, 0, 2])
        return self.reshape(out, 1, self.tokens, n_head * width)

    def gelu(self, x: Any) -> Any:
        return self.op("gelu", x=x, mode="EXACT")

    def swiglu(self, gate: Any, x: Any) -> Any:
        """Not MIL's ``silu``, of which Apple's value_inference computes nothing: what is exported has to be checked."""
        silu = self.op("mul", x=gate, y=self.op("sigmoid", x=gate))
        return self.op("mul", x=silu, y=x)

    def add(self, x: Any, y: Any) -> Any:
        return self.op("add", x=x, y=y)

    def scale(self, x: Any, factor: float) -> Any:
        return x if factor == 1 else self.op("mul", x=x, y=np.float16(factor))

    def turn(self, x: Any, n_head: int, back: bool = False) -> Any:
        """A pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
        positions = self.config.positions
        assert isinstance(positions, Rotary)
        cosine, sine = self.angles
        whole, half, width = positions.dim, positions.dim // 2, x.shape[-1] // n_head
        halves = positions.pairs == "halves"
        heads, plain = self.by_head(x, n_head), []
        if whole < width:
            heads, *plain = self.op("split", x=heads, split_sizes=_ints(whole, width - whole), axis=2)
        pairs = self.reshape(heads, self.tokens, n_head, *((2, half) if halves else (half, 2)))
        a, b = self.op("split", x=pairs, num_splits=2, axis=2 if halves else 3)
        a_cosine, b_sine, b_cosine, a_sine = (
            self.op("mul", x=p, y=q) for p, q in ((a, cosine), (b, sine), (b, cosine), (a, sine))
        )
        first, second = ("add", "sub") if back else ("sub", "add")
        turned = [self.op(first, x=a_cosine, y=b_sine), self.op(second, x=b_cosine, y=a_sine)]
        out = self.op("concat", values=turned, axis=2 if halves else 3)
        if plain:
            out = self.op("concat", values=[self.reshape(out, self.tokens, n_head, whole), *plain], axis=2)
        return self.side_by_side(out)

    def channels(self, x: Any, n_head: int, start: int, stop: int) -> Any:
        return self.side_by_side(self._cut(self.by_head(x, n_head), start, stop))

    def join(self, parts: list[Any], n_head: int) -> Any:
        if n_head == 1:
            return self.op("concat", values=parts, axis=2)
        return self.side_by_side(self.op("concat", values=[self.by_head(part, n_head) for part in parts], axis=2))

    def repeat(self, x: Any, n_head: int) -> Any:
        return self.op("tile", x=x, reps=[1, 1, n_head])

    def attend_latent(self, q_nope: Any, q_rope: Any, row: Any, name: str, layer: int) -> Any:
        return absorbed(self, self.config, q_nope, q_rope, row, name, layer)

    def attend(self, q: Any, k: Any, v: Any | None, layer: int) -> Any:
        """The query heads that share a KV head become rows of one matrix, so that the cache is never repeated for them.

        Both products take a state as it is, since a slice of it would be a copy of the cache in every step: where the key is
        shorter than its row the query gets zeros for the rest, and where the value is, the output is cut.
        """
        row = self.config.row
        keys = self._append(k, cache_name(layer, "k"))
        values = keys if v is None else self._append(v, cache_name(layer, "v"))
        folded = self.tokens * row.group
        if self.tokens > 1:
            q = self.reshape(q, self.tokens, row.kv_heads, row.group, row.key.width)
            q = self.op("transpose", x=q, perm=[1, 0, 2, 3])
        rows = self.reshape(q, 1, row.kv_heads, folded, row.key.width)
        rows = self.op("mul", x=rows, y=np.float16(row.softmax_scale))
        beyond = row.widths["k"] - row.key.width
        if beyond:
            rows = self.op("pad", x=rows, pad=_ints(0, beyond), mode="constant", constant_val=np.float16(0))
        scores = self.op("matmul", x=rows, y=keys, transpose_y=True)  # [1, kv_heads, tokens * group, capacity]
        weights = self.op("softmax", x=self.op("add", x=scores, y=self.mask), axis=-1)
        out = self.op("matmul", x=weights, y=values)
        out = self._cut(out, row.value.start, row.value.stop)
        if self.tokens > 1:
            out = self.reshape(out, row.kv_heads, self.tokens, row.group, row.value.width)
            out = self.op("transpose", x=out, perm=[1, 0, 2, 3])
        return self.reshape(out, 1, self.tokens, row.heads * row.value.width)

    def last_token(self, x: Any) -> Any:
        if self.tokens == 1:
            return x
        shape = [1, self.tokens, self.config.d_model]
        return self.op("slice_by_index", x=x, begin=[0, self.tokens - 1, 0], end=shape)

    def logits(self, x: Any, name: str) -> Any:
        x = self.reshape(x, 1, self.config.d_model)
        parts = [self.op("linear", x=x, weight=table) for table in self.table(f"{name}.weight")]
        padding = self.config.vocab_size - self.config.token_count
        while padding and self.cuts[len(parts) - 1][0] >= self.config.token_count:
            parts.pop()  # a part of padding alone
        kept = self.config.token_count - self.cuts[len(parts) - 1][0]
        if padding:
            parts[-1] = self.op("slice_by_index", x=parts[-1], begin=[0, 0], end=[1, kept])
            parts.append(self.constant("padding", np.full((1, padding), -np.inf, np.float16)))
        whole = parts[0] if len(parts) == 1 else self.op("concat", values=parts, axis=1)
        return mb.cast(x=self.reshape(whole, self.config.vocab_size), dtype="fp32", name="logits")

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _rms_scaled(self, x: Any, eps: float) -> Any:
        """x / sqrt(mean(x²) + eps) over the last axis.

        MIL has no RMSNorm, and in fp16 x² is infinite from 256 on and nothing below 0.0002. Casts to fp32 around it would take
        every norm off the Neural Engine, so x is divided by its largest magnitude m first: with y = x / m the norm is
        y / sqrt(mean(y²) + eps / m²), all of it between 0 and 2. m is at least sqrt(eps), so that a row of zeros stays one.
        """
        root = np.float16(np.sqrt(eps))
        largest = self.op("reduce_max", x=self.op("abs", x=x), axes=[-1], keep_dims=True)
        largest = self.op("maximum", x=largest, y=root)
        y = self.op("real_div", x=x, y=largest)
        small = self.op("real_div", x=root, y=largest)
        mean = self.op("reduce_mean", x=self.op("mul", x=y, y=y), axes=[-1], keep_dims=True)
        variance = self.op("add", x=mean, y=self.op("mul", x=small, y=small))
        return self.op("real_div", x=y, y=self.op("sqrt", x=variance))

    def _heads_first(self, x: Any, n_head: int) -> Any:
        """[1, tokens, width] as [n_head, tokens, channels]."""
        if self.tokens == 1:
            return self.reshape(x, n_head, 1, x.shape[-1] // n_head)
        return self.op("transpose", x=self.by_head(x, n_head), perm=[1, 0, 2])

    def _cut(self, x: Any, start: int, stop: int) -> Any:
        """Of the last axis."""
        if stop - start == x.shape[-1]:
            return x
        before = [0] * (len(x.shape) - 1)
        return self.op("slice_by_index", x=x, begin=[*before, start], end=[*x.shape[:-1], stop])

    def _append(self, x: Any, name: str) -> Any:
        """Write the new rows at ``position``; returns the whole tensor as the state then holds it.

        A prefill takes the heads apart and stacks them: a reshape with a transpose before a state write of more than one
        token has failed to load on devices (coremltools issue 2278).
        """
        kv_heads = self.config.row.kv_heads
        if self.tokens == 1 or kv_heads == 1:
            rows = self.reshape(x, 1, kv_heads, self.tokens, x.shape[-1] // kv_heads)
        else:
            rows = self.op("stack", values=self.op("split", x=x, num_splits=kv_heads, axis=2), axis=1)
        other_axes = [True, True, False, True]
        state = self.states[name]
        updated = self.op(
            "slice_update",
            x=self.op("read_state", input=state),
            update=rows,
            begin=self.begin,
            end=self.end,
            begin_mask=other_axes,
            end_mask=other_axes,
        )
        return self.op("coreml_update_state", state=state, value=updated)

    def _causal_mask(self) -> Any:
        """fp16 [1, 1, tokens * group, capacity]: 0 where a row may look, :data:`HIDDEN` elsewhere."""
        columns = self.constant("columns", np.arange(self.layout.capacity, dtype=np.int32)[None, None, None])
        steps = np.repeat(np.arange(self.tokens, dtype=np.int32), self.config.row.group)[None, None, :, None]
        visible = self.op("less_equal", x=columns, y=self.op("add", x=self.position, y=steps))
        return self.op("select", cond=visible, a=np.float16(0), b=np.float16(HIDDEN))

    def _angles(self, positions: Rotary) -> tuple[Any, Any]:
        """Cosines and sines of the tokens, fp16, shaped as the pairs of :meth:`turn` are.

        A table for all of the capacity: an angle is up to the position's size, which fp16 does not hold, but its cosine is at
        most 1, where fp16 is off by 0.00025.
        """
        rows = self.op("add", x=self.position, y=np.arange(self.tokens, dtype=np.int32))
        half = positions.dim // 2
        shape = (self.tokens, 1, 1, half) if positions.pairs == "halves" else (self.tokens, 1, half, 1)
        tables = turns(positions, self.layout.capacity)
        cosine, sine = (
            self.constant(name, self.weights.array(name, partial(table.astype, np.float16)))
            for name, table in zip(("cosines", "sines"), tables, strict=True)
        )
        cosine, sine = (self.reshape(self.op("gather", x=t, indices=rows, axis=0), *shape) for t in (cosine, sine))
        return cosine, sine


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)
