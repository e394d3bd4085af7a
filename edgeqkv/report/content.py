"""The report in words and tables, before it is a page: what :mod:`page` and :mod:`markdown` only lay out."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.compared import is_baseline
from edgeqkv.bench.flat import flat_rows
from edgeqkv.bench.record import Failure, Record, bandwidth_share
from edgeqkv.bench.tables import NOT_MEASURED, Table, memory_table, size, speed_table
from edgeqkv.bench.words import machine, notes, place, runs, runtimes, threads
from edgeqkv.parity import perplexity_percent
from edgeqkv.report.headline import Number, compared, numbers, sentence, telling_budget
from edgeqkv.report.names import Names
from edgeqkv.report.pairs import Pair, memory_share, pairs, percent, speed
from edgeqkv.report.plots import Plot, plots
from edgeqkv.report.steps import Step, steps

UNKNOWN = "unknown"
BASELINE = "baseline"


@dataclass(frozen=True)
class Section:
    """One interleaved run on one device. ``verdict`` is its gain in a sentence, ``compared`` what that compares; both are empty
    where the run has no pair. ``ids`` is what an emulated run has instead of everything else."""

    title: str
    verdict: str
    compared: str
    numbers: tuple[Number, ...]
    notes: tuple[str, ...]
    steps: Table
    plots: tuple[Plot, ...]
    savings: Table
    memory: Table
    speed: Table
    ids: Table
    emulated: bool


@dataclass(frozen=True)
class Content:
    """``verdict`` is the first sentence, that of the first section which has one. ``notes`` are those of whoever made the
    report."""

    verdict: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    devices: Table
    failures: Table
    method: Table
    raw: Table


def content(
    records: Sequence[Record], failures: Sequence[Failure], budget: int | None = None, notes: Sequence[str] = ()
) -> Content:
    """``budget`` in bytes of RAM: how many positions fit in it."""
    every, names = runs(records), Names(records)
    told = [_best(run) for run in every]
    sections = [_section(run, pair, budget, names) for run, pair in zip(every, told, strict=True)]
    # What says something comes first.
    sections.sort(key=lambda section: not section.verdict)
    return Content(
        verdict=_headline(sections),
        notes=tuple(notes),
        sections=tuple(sections),
        devices=_devices(every, told, names),
        failures=Table(
            ("time", "device", "bundle", "what happened"),
            tuple((f.time, f.device, f.bundle or "", f.message) for f in failures),
        ),
        method=_method(records),
        raw=_raw(records, budget),
    )


def _best(run: Sequence[Record]) -> Pair | None:
    """What the report speaks of: the record that gains most."""
    timed = [] if run[0].environment.emulated else pairs(run)
    return max(timed, key=lambda pair: pair.gain, default=None)


def _headline(sections: Sequence[Section]) -> str:
    if sections and sections[0].verdict:
        return sections[0].verdict
    if sections:
        return "No variant was measured beside a baseline in the same run, so nothing is compared."
    return "Nothing could be measured; why is told below."


def _section(run: list[Record], pair: Pair | None, budget: int | None, names: Names) -> Section:
    first = run[0]
    emulated = first.environment.emulated
    told = list(notes(run))
    if emulated:
        told.append("emulated: the ids are those of the device's processor, times and memory would mean nothing")
    taken = steps(run, pair) if pair else ()
    ram = budget or (telling_budget(pair) if pair else None)
    return Section(
        title=f"{place(first)} ({first.device}), {threads(first)}",
        verdict=sentence(pair) if pair else "",
        compared=compared(pair) if pair else "",
        numbers=numbers(pair, ram) if pair else (),
        notes=tuple(told),
        steps=_steps(taken),
        plots=() if emulated else tuple(plots(run, pair, taken, ram, names)),
        savings=_savings(run, names),
        memory=_named(memory_table(run, budget), "memory, MiB", run, names),
        speed=_named(speed_table(run), "speed", run, names),
        ids=Table(("variant", "ids after 1 2 3"), tuple((names.of(r), " ".join(map(str, r.greedy_ids))) for r in run)),
        emulated=emulated,
    )


def _named(table: Table, title: str, run: Sequence[Record], names: Names) -> Table:
    """With the names of this report in the first column; a table has a row for each record."""
    rows = tuple((names.of(record), *row[1:]) for record, row in zip(run, table.rows, strict=True))
    return Table((title, *table.header[1:]), rows)


def _steps(taken: Sequence[Step]) -> Table:
    """The gain, one change at a time."""
    rows = []
    for before, step in zip((None, *taken), taken, strict=False):
        name = f"+ {step.change}" if before else f"{step.record.subject.variant}, the baseline"
        share = memory_share(step.record, before.record) if before else None
        ratio = speed(step.record, before.record) if before else None
        times = f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else NOT_MEASURED if before else ""
        memory = percent(share, 1) if share else NOT_MEASURED if before else ""
        last = max(step.record.timings.decode, key=lambda timing: timing.depth, default=None)
        ms = f"{1e3 * last.median:.2f} at {last.depth:,}" if last else NOT_MEASURED
        rows.append((name, size(step.record.memory.peak), memory, ms, times))
    return Table(("one change at a time", "peak MiB", "against the row above", "ms a token", "times as fast"), tuple(rows))


def _savings(run: Sequence[Record], names: Names) -> Table:
    """Both comparisons of every record, beside the quality that is paid for them."""
    rows, found = [], {id(pair.record): pair for pair in pairs(run)}
    for record in run:
        pair = found.get(id(record))
        if pair is None:
            cells = (BASELINE if is_baseline(record) else "no baseline", "", "", "")
        else:
            cells = (*_against(record, pair.today), *_against(record, pair.alike))
        rows.append((names.of(record), *cells, _quality(record)))
    header = (
        "variant",
        "memory against today",
        "speed against today",
        "memory like for like",
        "speed like for like",
        "perplexity",
    )
    return Table(header, tuple(rows))


def _against(record: Record, base: Record | None) -> tuple[str, str]:
    """Of peak memory and of decoding speed."""
    if base is None:
        return NOT_MEASURED, NOT_MEASURED
    share, ratio = memory_share(record, base), speed(record, base)
    memory = percent(share, 1) if share else NOT_MEASURED
    if ratio is None:
        return memory, NOT_MEASURED
    times = f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})"
    return memory, times if ratio.differs else f"{times}, not shown"


def _quality(record: Record) -> str:
    parity = record.subject.parity
    if record.subject.baseline == "random weights":
        return "random weights"
    if parity is None or parity.perplexity_reference <= 0:
        return "not verified"
    change = f"{parity.perplexity:.2f} ({perplexity_percent(parity):+.2f} %)"
    return f"{change}, {'passed' if parity.passed else 'FAILED'}"


def _devices(every: Sequence[Sequence[Record]], told: Sequence[Pair | None], names: Names) -> Table:
    """The devices beside each other, each with what gains most there and its own baseline: they are not compared as one run."""
    rows = []
    for run, pair in zip(every, told, strict=True):
        title = f"{place(run[0])} ({run[0].device}), {threads(run[0])}"
        if pair is None:
            rows.append((title, NOT_MEASURED, *[""] * 5))
            continue
        share, ratio = memory_share(pair.record, pair.today), speed(pair.record, pair.today)
        memory = f"{size(pair.record.memory.peak, 0)} ({percent(share)})" if share else NOT_MEASURED
        ours, theirs = (_tokens(record, pair.depth) for record in (pair.record, pair.today))
        depth = f" at {pair.depth:,}" if pair.depth is not None else ""
        times = f"{ratio.value:.2f} × ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else NOT_MEASURED
        rows.append(
            (title, names.of(pair.record), memory, f"{ours} instead of {theirs}{depth}", times, _bandwidth(pair), _energy(pair))
        )
    header = (
        "device",
        "what gains most",
        "peak MiB",
        "tokens a second",
        "times as fast",
        "of the bandwidth",
        "J a token",
    )
    return Table(header, tuple(rows))


def _tokens(record: Record, depth: int | None) -> str:
    found = next((timing for timing in record.timings.decode if timing.depth == depth), None)
    return f"{found.tokens_per_s:,.0f}" if found else NOT_MEASURED


def _bandwidth(pair: Pair) -> str:
    found = next((timing for timing in pair.record.timings.decode if timing.depth == pair.depth), None)
    share, best = bandwidth_share(pair.record, found) if found else None, pair.record.bandwidth and pair.record.bandwidth.best
    return f"{100 * share:.0f} % of {best / 1e9:.1f} GB/s" if share and best else NOT_MEASURED


def _energy(pair: Pair) -> str:
    """Of both, where the device tells."""
    used = [record.energy.at(pair.depth) if record.energy and pair.depth else None for record in (pair.record, pair.today)]
    ours, theirs = (NOT_MEASURED if joules is None else f"{joules:.3g}" for joules in used)
    return NOT_MEASURED if ours == theirs == NOT_MEASURED else f"{ours} instead of {theirs}"


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
