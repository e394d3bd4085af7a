"""The report in words and tables, before it is a page: what :mod:`page` and :mod:`markdown` only lay out."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.compared import Baselines, deepest, is_baseline
from edgeqkv.bench.flat import flat_rows
from edgeqkv.bench.ratio import speed_ratio
from edgeqkv.bench.record import Failure, Record
from edgeqkv.bench.tables import NAME, NOT_MEASURED, Table, memory_table, size, speed_table
from edgeqkv.bench.words import machine, name, notes, place, runs, runtimes, threads
from edgeqkv.parity import perplexity_percent
from edgeqkv.report.verdict import amount, verdict

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Section:
    """One interleaved run. ``verdicts`` are sentences, one for each variant that has a baseline; ``ids`` is what an emulated
    run has instead of memory and speed."""

    title: str
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    verdicts: tuple[str, ...]
    savings: Table
    memory: Table
    speed: Table
    ids: Table
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
    return Content(
        verdict=_headline(sections),
        sections=sections,
        devices=_devices(sections),
        failures=Table(
            ("time", "device", "bundle", "what happened"),
            tuple((f.time, f.device, f.bundle or "", f.message) for f in failures),
        ),
        method=_method(records),
        raw=_raw(records, budget),
        budget=budget,
    )


def _headline(sections: Sequence[Section]) -> str:
    """The sentence that the page opens with."""
    said = [sentence for section in sections for sentence in section.verdicts]
    if said:
        return said[0]
    if sections:
        return "No variant was measured beside a baseline in the same run, so there is no verdict."
    return "Nothing could be measured; why is told below."


def _section(run: list[Record], budget: int | None) -> Section:
    first, baselines = run[0], Baselines(run)
    emulated = first.environment.emulated
    told = list(notes(run))
    if emulated:
        told.append("emulated: the ids are those of the device's processor, times and memory would mean nothing")
    # The largest saving first.
    pairs = [(record, base) for record in run if (base := baselines.of(record)) is not None]
    pairs.sort(key=lambda pair: (pair[1].memory.peak or 0) - (pair[0].memory.peak or 0), reverse=True)
    ids = tuple((r.subject.variant, r.subject.kernel, " ".join(map(str, r.greedy_ids))) for r in run)
    return Section(
        title=f"{place(first)} ({first.device}), {threads(first)}",
        records=tuple(run),
        notes=tuple(told),
        verdicts=() if emulated else tuple(verdict(record, base) for record, base in pairs),
        savings=_savings(run, baselines),
        memory=memory_table(run, budget),
        speed=speed_table(run),
        ids=Table(("variant", "kernel", "ids after 1 2 3"), ids),
        emulated=emulated,
    )


def _savings(run: Sequence[Record], baselines: Baselines) -> Table:
    """Savings beside quality: what is paid for them."""
    rows = []
    for record in run:
        base = baselines.of(record)
        if base is None:
            saved = ("baseline" if is_baseline(record) else "no baseline", "", "")
        else:
            saved = (amount(base.memory.cache_bytes - record.memory.cache_bytes), *_measured_savings(record, base))
        rows.append((name(record), *saved, _quality(record)))
    return Table((NAME, "cache", "peak memory", "decode speed", "perplexity"), tuple(rows))


def _measured_savings(record: Record, base: Record) -> tuple[str, str]:
    """Of peak memory and of decoding time."""
    ours, theirs = record.memory.peak, base.memory.peak
    peak = NOT_MEASURED if ours is None or theirs is None else amount(theirs - ours)
    pair = deepest(record, base)
    ratio = speed_ratio(pair[1], pair[0], record.rounds_done) if pair else None
    if ratio is None:
        return peak, NOT_MEASURED
    speed = f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})"
    return peak, speed if ratio.differs else f"{speed}, not shown"


def _quality(record: Record) -> str:
    parity = record.subject.parity
    if record.subject.baseline == "random weights":
        return "random weights"
    if parity is None or parity.perplexity_reference <= 0:
        return "not verified"
    change = f"{parity.perplexity:.2f} ({perplexity_percent(parity):+.2f} % by the export)"
    return f"{change}, {'passed' if parity.passed else 'FAILED'}"


def _devices(sections: Sequence[Section]) -> Table:
    """Each device's decode speed at its deepest depth: beside each other, never compared as one run."""
    rows = []
    for section in sections:
        for record in section.records:
            last = max(record.timings.decode, key=lambda timing: timing.depth, default=None)
            speed = f"{last.tokens_per_s:,.0f} at {last.depth:,}" if last else NOT_MEASURED
            rows.append((section.title, name(record), size(record.memory.peak), speed))
    return Table(("device", NAME, "peak RSS MiB", "decode tokens/s"), tuple(rows))


def _method(records: Sequence[Record]) -> Table:
    rows = [row for run in runs(records) for row in (*_where(run[0]).items(), *_how(run).items())]
    return Table(("how it was measured", ""), tuple(rows))


def _where(record: Record) -> dict[str, str]:
    e, vitals = record.environment, record.vitals
    governors = ", ".join(sorted(set(e.governors))) if e.governors else UNKNOWN
    return {
        "device": f"{record.device}: {machine(record)}, {e.machine or UNKNOWN}",
        "system": ", ".join(filter(None, (e.os, e.os_kernel))),
        "cores": f"{e.cores or UNKNOWN}, allowed {e.affinity or UNKNOWN}; governor {governors}",
        "frequencies": _moved([max(v.frequencies_khz) / 1e3 for v in vitals if v.frequencies_khz], "MHz"),
        "temperature": _moved([max(v.temperatures.values()) / 1e3 for v in vitals if v.temperatures], "°C"),
        "thermal status": _moved([float(v.thermal_status) for v in vitals if v.thermal_status is not None], "of 6"),
        "power": next((f"{v.battery_percent} % battery, {v.battery_status}" for v in vitals if v.battery_status), UNKNOWN),
        "throttled": {None: UNKNOWN, True: "yes", False: "no"}[record.throttled],
    }


def _how(run: Sequence[Record]) -> dict[str, str]:
    record, plan = run[0], run[0].plan
    program = record.program
    what = f"the app {record.app.package} {record.app.version_name or UNKNOWN}" if record.app else program.name
    return {
        "program": f"{what} with {runtimes(run)}; edgeqkv {program.edgeqkv}, commit {program.git_commit or UNKNOWN}",
        "rounds": f"{record.rounds_done} of {plan.rounds}, {plan.steps} tokens a visit after {plan.warm_up_steps} that are not "
        f"counted, {plan.cool_down_s:g} s between rounds, bundles {record.interleaving}, depths filled by {plan.filled}",
        "measured": f"{record.time}, run {record.run}",
    }


def _moved(values: Sequence[float], unit: str) -> str:
    return f"{values[0]:,.0f} {unit} before, {values[-1]:,.0f} {unit} after" if values else UNKNOWN


def _raw(records: Sequence[Record], budget: int | None) -> Table:
    rows = flat_rows(records, budget)
    return Table(tuple(rows[0]) if rows else (), tuple(tuple(map(_plain, row.values())) for row in rows))


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
