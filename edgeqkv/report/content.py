"""The report in words and tables, before it is a page: what :mod:`page` and :mod:`markdown` only lay out."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.record import Failure, Record, largest_capacity
from edgeqkv.bench.summary import RUNTIMES, flat_rows, machine, name, notes, runs
from edgeqkv.parity import perplexity_percent
from edgeqkv.report.compare import baseline_of, peak, speed_ratio
from edgeqkv.tables import mib

Rows = tuple[tuple[str, ...], ...]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Section:
    """One interleaved run. ``verdicts`` are sentences, one for each variant that has a baseline."""

    title: str
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    verdicts: tuple[str, ...]
    savings: Table
    memory: Table
    speed: Table
    emulated: bool


@dataclass(frozen=True)
class Content:
    """``budget`` is the RAM line in bytes, or None."""

    verdict: str
    sections: tuple[Section, ...]
    devices: Table
    failures: Table
    method: Table
    raw: Table
    budget: int | None


def content(records: Sequence[Record], failures: Sequence[Failure], budget: int | None = None) -> Content:
    sections = tuple(_section(run, budget) for run in runs(records))
    timed = [section for section in sections if section.verdicts]
    if timed:
        verdict = timed[0].verdicts[0]
    elif sections:
        verdict = "No variant was measured beside a QKV baseline in the same run, so there is no verdict."
    else:
        verdict = "Nothing could be measured; why is told below."
    raw = flat_rows(records, budget)
    return Content(
        verdict=verdict,
        sections=sections,
        devices=_devices(sections),
        failures=Table(
            ("time", "device", "bundle", "what happened"),
            tuple((f.time, f.device, f.bundle or "", f.message) for f in failures),
        ),
        method=_method(records),
        raw=Table(tuple(raw[0]) if raw else (), tuple(tuple(_plain(value) for value in row.values()) for row in raw)),
        budget=budget,
    )


def _section(run: list[Record], budget: int | None) -> Section:
    first = run[0]
    emulated = first.environment.emulated
    told = list(notes(run))
    if emulated:
        told.append("emulated: the ids are those of the device's processor, times and memory would mean nothing")
    # The largest saving first: the sentence that the page opens with.
    pairs = [(record, base) for record in run if (base := baseline_of(record, run)) is not None]
    pairs.sort(key=lambda pair: (peak(pair[1]) or 0) - (peak(pair[0]) or 0), reverse=True)
    return Section(
        title=f"{machine(first)} ({first.device}), {first.threads} thread{'s' if first.threads > 1 else ''}",
        records=tuple(run),
        notes=tuple(told),
        verdicts=() if emulated else tuple(verdict(record, base) for record, base in pairs),
        savings=_savings(run),
        memory=_memory(run, budget),
        speed=_speed(run),
        emulated=emulated,
    )


def verdict(record: Record, base: Record) -> str:
    """One sentence: what this variant needs and how fast it decodes next to its baseline, at the deepest measured depth."""
    ours, theirs = peak(record), peak(base)
    depth = record.decode[-1].depth
    ours_name, base_name, shared = _told_apart(record, base)
    place = f"At {depth:,} positions on {machine(record)}, {ours_name}"
    cache = base.cache_bytes - record.cache_bytes
    if ours is None or theirs is None:
        memory = f"keeps {_amount(cache)} cache than {base_name}{shared}"
    else:
        saved = f"{_amount(theirs - ours)} memory at its peak ({_amount(cache)} cache)"
        memory = f"needs {saved} than {base_name}{shared}"
    ratio = speed_ratio(base.decode[-1], record.decode[-1], record.rounds_done)
    if ratio is None:
        speed = "its speed was not measured often enough to compare"
    elif not ratio.differs:
        speed = f"no difference in decoding speed could be shown ({_interval(ratio.value, ratio.low, ratio.high)} times)"
    else:
        word = "faster" if ratio.value > 1 else "slower"
        value, low, high = (
            (ratio.value, ratio.low, ratio.high) if ratio.value > 1 else (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        )
        speed = f"decodes {value:.2f} times {word} ({low:.2f} to {high:.2f})"
    joint = "; " if speed.startswith(("no", "its")) else " and "
    throttled = " The machine throttled during this run." if record.throttled or base.throttled else ""
    return f"{place} {memory}{joint}{speed}.{throttled}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f}, {low:.2f} to {high:.2f}"


def _told_apart(record: Record, base: Record) -> tuple[str, str, str]:
    """The two names with what differs between them besides the sharing, and what they have in common."""
    fields = ("cache", "weights", "kernel", "runtime")
    differing = [field for field in fields if getattr(record, field) != getattr(base, field)]

    def told(one: Record, field: str) -> str:
        return RUNTIMES.get(one.runtime, one.runtime) if field == "runtime" else f"{getattr(one, field)} {field}"

    def named(one: Record) -> str:
        return one.variant + (f" ({', '.join(told(one, field) for field in differing)})" if differing else "")

    common = [told(base, field) for field in fields if field not in differing]
    return named(record), named(base), f" (both {', '.join(common)})" if common else ""


def _amount(saved: int) -> str:
    return f"{abs(saved) / 2**20:,.1f} MiB {'less' if saved >= 0 else 'more'}"


def _savings(run: Sequence[Record]) -> Table:
    """Savings beside quality: what is paid for them."""
    rows = []
    for record in run:
        base, parity = baseline_of(record, run), record.parity
        saved = "baseline" if record.variant == "QKV" else "no baseline"
        speed = peak_saved = ""
        if base is not None:
            saved = _amount(base.cache_bytes - record.cache_bytes)
            ours, theirs = peak(record), peak(base)
            peak_saved = "not measured" if ours is None or theirs is None else _amount(theirs - ours)
            times = zip(record.decode[-1:], base.decode[-1:], strict=True)
            ratio = next((speed_ratio(b, r, record.rounds_done) for r, b in times), None)
            speed = "not measured" if ratio is None else f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})"
            speed += "" if ratio is None or ratio.differs else ", not shown"
        quality = "not verified"
        if record.baseline == "random weights":
            quality = "random weights"
        elif parity is not None:
            quality = f"{parity.perplexity:.2f} ({perplexity_percent(parity):+.2f} % by the export), "
            quality += "passed" if parity.passed else "FAILED"
        rows.append((name(record), saved, peak_saved, speed, quality))
    return Table(("variant, weights / cache, runtime", "cache", "peak memory", "decode speed", "perplexity"), tuple(rows))


def _memory(run: Sequence[Record], budget: int | None) -> Table:
    header = ["MiB", "weights", "cache", "rest", "peak RSS", "private", "cache by formula", "positions a MiB of cache holds"]
    header += [f"capacity in {mib(budget, 0)} MiB"] if budget else []
    rows = []
    for record in run:
        split, end = record.memory_split, record.memory.get("end")
        row = [name(record)]
        row += [_mib(part) for part in ((split.weights, split.cache, split.rest) if split else (None,) * 3)]
        row += [_mib(peak(record)), _mib(end.private if end else None), _mib(record.cache_bytes_analytic, 2)]
        row.append(f"{2**20 // record.cache_bytes_per_position:,}")
        if budget:
            fits = largest_capacity(record, budget)
            row.append(UNKNOWN if fits is None else f"{fits:,}" + (" (all it has)" if fits == record.model.n_positions else ""))
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _speed(run: Sequence[Record]) -> Table:
    depths = sorted({timing.depth for record in run for timing in record.decode})
    header = ["variant, weights / cache, runtime", "load ms", "first token ms"]
    header += [f"ms/token at {depth:,}: p50 p90 p99" for depth in depths]
    header += [f"prefill tokens/s to {depth:,}" for depth in depths]
    rows = []
    for record in run:
        decode = {timing.depth: timing for timing in record.decode}
        prefill = {timing.depth + timing.tokens: timing for timing in record.prefill}
        row = [name(record), f"{1e3 * min(record.load_s):,.0f}" if record.load_s else "not measured"]
        row.append(f"{1e3 * record.first_token.p50_s:,.1f}" if record.first_token else "not measured")
        row += [" ".join(f"{1e3 * s:.2f}" for s in (t.p50_s, t.p90_s, t.p99_s)) for t in (decode[d] for d in depths)]
        row += [f"{prefill[depth].tokens_per_s:,.0f}" for depth in depths]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _devices(sections: Sequence[Section]) -> Table:
    """Each device's decode speed at its deepest depth: beside each other, never compared as one run."""
    rows = []
    for section in sections:
        for record in section.records:
            last = record.decode[-1] if record.decode else None
            speed = f"{last.tokens_per_s:,.0f} at {last.depth:,}" if last else "not measured"
            rows.append((section.title, name(record), _mib(peak(record)), speed))
    return Table(("device", "variant, weights / cache, runtime", "peak RSS MiB", "decode tokens/s"), tuple(rows))


def _method(records: Sequence[Record]) -> Table:
    rows = []
    for run in runs(records):
        record, e = run[0], run[0].environment
        vitals = record.vitals
        facts = {
            "device": f"{record.device}: {machine(record)}, {e.machine or UNKNOWN}",
            "system": ", ".join(filter(None, (e.os, e.kernel))),
            "cores": f"{e.cores or UNKNOWN}, allowed {e.affinity or UNKNOWN}; governor "
            f"{', '.join(sorted(set(e.governors))) if e.governors else UNKNOWN}",
            "frequencies": _moved([max(v.frequencies_khz) / 1e3 for v in vitals if v.frequencies_khz], "MHz"),
            "temperature": _moved([max(v.temperatures.values()) / 1e3 for v in vitals if v.temperatures], "°C"),
            "power": next((f"{v.battery_percent} % battery, {v.battery_status}" for v in vitals if v.battery_status), UNKNOWN),
            "throttled": {None: UNKNOWN, True: "yes", False: "no"}[record.throttled],
            "program": f"{record.program}, {RUNTIMES.get(record.runtime, record.runtime)} {record.runtime_version}, edgeqkv "
            f"{record.edgeqkv}, commit {record.git_commit or UNKNOWN}",
            "rounds": f"{record.rounds_done} of {record.rounds}, {record.steps} tokens a visit after 2 that are not counted, "
            f"{record.cool_down_s:g} s between rounds, bundles {record.interleaving}",
            "measured": f"{record.time}, run {record.run}",
        }
        rows += list(facts.items())
    return Table(("how it was measured", ""), tuple(rows))


def _moved(values: Sequence[float], unit: str) -> str:
    return f"{values[0]:,.0f} {unit} before, {values[-1]:,.0f} {unit} after" if values else UNKNOWN


def _mib(count: int | None, digits: int = 1) -> str:
    return mib(count, digits) or "not measured"


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
