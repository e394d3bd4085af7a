"""Where a gain comes from: from the standard model as a team has it to a record, one change at a time.

The order is fixed: the kernel, the cache's dtype, sharing key and value, sharing heads. A change whose record the run lacks is
told together with the next one, so that every step stands on a measurement.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from edgeqkv.bench.compared import group_of
from edgeqkv.bench.record import Record
from edgeqkv.bench.words import runtime_title
from edgeqkv.config import SharedAttention
from edgeqkv.report.pairs import Pair

FACTS = ("runtime", "weights", "kernel", "cache")


@dataclass(frozen=True)
class Step:
    """What was changed to get from the record before to this one. The first step changes nothing."""

    change: str
    record: Record


def steps(run: Sequence[Record], pair: Pair) -> tuple[Step, ...]:
    """From ``pair.today`` to ``pair.record``; ``run`` is what else was measured in the same run."""
    same = [record for record in run if group_of(record) == group_of(pair.record)]
    measured = {_state(record): record for record in [*reversed(same), pair.record]}
    out, merged = [Step("", pair.today)], []
    for change, state in _changes(pair.today, pair.record):
        merged.append(change)
        if state in measured:
            out.append(Step(" and ".join(merged), measured[state]))
            merged = []
    return tuple(out)


def _state(record: Record) -> tuple[str, ...]:
    return (*(getattr(record.subject, fact) for fact in FACTS), record.subject.variant)


def _changes(base: Record, record: Record) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each change in words, and the state that it leads to."""
    state, goal = list(_state(base)), _state(record)
    for i, fact in enumerate(FACTS):
        if state[i] != goal[i]:
            state[i] = goal[i]
            yield _in_words(fact, goal[i]), tuple(state)
    attention = record.subject.model.attention
    if not isinstance(attention, SharedAttention):
        yield f"one latent row for K and V of all heads ({attention.variant})", goal
        return
    all_heads = replace(attention, n_kv_head=attention.n_head)
    if all_heads.variant != state[-1]:
        state[-1] = all_heads.variant
        yield f"{'one tensor for K and V' if attention.v_is_k else 'shared projections'} ({all_heads.variant})", tuple(state)
    if attention.n_kv_head < attention.n_head:
        heads = "one KV head" if attention.n_kv_head == 1 else f"{attention.n_kv_head} KV heads"
        yield f"{heads} ({attention.variant})", goal


def _in_words(fact: str, value: str) -> str:
    if fact == "runtime":
        return runtime_title(value)
    return "our kernel" if value == "fused" else f"{value} {fact}"
