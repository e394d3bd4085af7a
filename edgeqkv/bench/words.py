"""What records are called where people read them."""

import math
from collections.abc import Sequence

from edgeqkv.bench.ratio import disturbed
from edgeqkv.bench.record import APP, Record
from edgeqkv.bench.stopping import widest_interval
from edgeqkv.targets import targets


def runtime_title(name: str) -> str:
    """A runtime's name as people write it."""
    target = targets().get(name)
    return target.title if target else name


def name(record: Record) -> str:
    """The subject of a record, as short as it can be told from the others."""
    s = record.subject
    return f"{s.variant}, {s.weights} / {s.cache}, {s.runtime} {s.kernel}"


def machine(record: Record) -> str:
    """The device in a few words."""
    e = record.environment
    return e.model if e.model and e.soc else e.cpu or e.model or e.machine or "an unknown machine"


def place(record: Record) -> str:
    """The device, and whether it was measured inside an app there: two things that nobody should take for one."""
    return machine(record) + (" in the app" if record.program.name == APP else "")


def runtimes(run: Sequence[Record]) -> str:
    """Every runtime that was measured, with its version."""
    return ", ".join(dict.fromkeys(f"{runtime_title(r.subject.runtime)} {r.subject.runtime_version}" for r in run))


def threads(record: Record) -> str:
    return f"{record.plan.threads} thread{'s' if record.plan.threads > 1 else ''}"


def runs(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each interleaved run of one program together: only those are compared."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.run, record.program.name), []).append(record)
    return list(found.values())


def notes(run: Sequence[Record]) -> list[str]:
    """What a reader has to know before the numbers."""
    out, plan = [], run[0].plan
    if any(record.throttled for record in run):
        out.append("the machine throttled during this run; cool it and measure again with --resume --again-throttled")
    if any(map(_was_interrupted, run)):
        of = f" of {plan.rounds}" if plan.precision is None else ""
        out.append(f"interrupted after {run[0].rounds_done}{of} rounds; --resume goes on")
    elif run[0].ended == "time" and plan.precision is not None:
        widest = widest_interval(run)
        known = (
            f"the widest interval of a ratio is ±{widest:.1%}"
            if widest and math.isfinite(widest)
            else "ratios are not known yet, for which --rounds 9 is enough on a slow device"
        )
        out.append(f"the time was up before every ratio was known to ±{plan.precision:.1%}: {known}; --time gives it more")
    busy = max((disturbed(timing) for record in run for timing in record.timings.decode), default=0)
    if 4 * busy > run[0].rounds_done:
        out.append(
            f"other programs had the processors in {busy} of {run[0].rounds_done} rounds, which do not count for ratios; "
            "end them, or give fewer --threads"
        )
    if any(map(_was_hidden, run)):
        out.append("the app was not in front all the time, or the screen was off: Android gives such an app fewer cores")
    if any(record.subject.baseline == "random weights" for record in run):
        out.append("the baseline has random weights: it shows memory and speed, not quality")
    if any(record.plan.filled == "zeros" for record in run):
        out.append("depths were filled with rows of zeros instead of a prompt's")
    return out


def _was_interrupted(record: Record) -> bool:
    if record.environment.emulated or record.ended is not None:
        return False
    return record.plan.precision is not None or record.rounds_done < record.plan.rounds


def _was_hidden(record: Record) -> bool:
    """Of an app, by what its device said after each round."""
    if record.app is None:
        return False
    ours = f"{record.app.package}/"
    later = record.vitals[1:]
    return any(v.screen_on is False or v.locked or (v.in_front and not v.in_front.startswith(ours)) for v in later)
