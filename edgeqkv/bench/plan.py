"""How a run is measured: at which depths, how often, with how many threads."""

from typing import Annotated, Literal

from msgspec import Meta

from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import Strict

WARM_UP_STEPS = 2  # tokens that are decoded before each measured series, and not counted
LONGEST_COOL_DOWN = 3600.0  # seconds
VISIT_S = 0.05  # seconds of timed steps in a visit: long enough that neither the clock nor a switch of processes matters
ROUNDS = 5  # the fewest of a run that goes on until it is precise, and all of one that compares nothing
ROUNDS_A_START = 4
PRECISION, TIME_S = 0.03, 300.0
LONGEST = 86_400.0  # seconds of anything that a user may ask for
Filling = Literal["prefill", "zeros"]
Positive = Annotated[int, Meta(ge=1, le=2**31)]


class Plan(Strict, frozen=True, kw_only=True):
    """``depths`` are ascending; ``prompt`` is the length behind the time to first token, and of a prefill ending at a depth.

    ``filled`` says how a depth is reached: "prefill" computes every row from tokens; "zeros" writes rows of zeros, which is
    quick at any depth, and attention does the same work whatever a row holds. ``warm_up_steps`` tokens are decoded before
    ``steps`` are measured, at each depth in each round; such series are repeated until a visit has timed ``visit_s`` seconds
    (None: one series).

    After every ``rounds_a_start`` rounds all processes are started anew (None: never). ``rounds`` are measured. Where
    ``precision`` is given they are the fewest: the run goes on until half the width of every ratio's interval is at most that
    (0.03: 3 %), or ``time_s`` seconds have passed. ``sustain_s`` is how long each bundle is decoded without a rest after the
    rounds.
    """

    depths: tuple[Positive, ...]
    threads: Positive
    prompt: Positive
    warm_up_steps: Annotated[int, Meta(ge=0, le=2**31)]
    steps: Positive
    rounds: Positive
    cool_down_s: Annotated[float, Meta(ge=0, le=LONGEST_COOL_DOWN)]
    filled: Filling
    rounds_a_start: Positive | None = None
    visit_s: Annotated[float, Meta(ge=0, le=LONGEST)] | None = None
    precision: Annotated[float, Meta(gt=0, le=1)] | None = None
    time_s: Annotated[float, Meta(gt=0, le=LONGEST)] | None = None
    sustain_s: Annotated[float, Meta(gt=0, le=LONGEST)] | None = None


def rounds_a_start(rounds: int | None) -> int:
    """As few of ``rounds`` that an interval has its five observations, of two starts each; None: as many as it takes."""
    return ROUNDS_A_START if rounds is None else max(1, min(ROUNDS_A_START, rounds // 10))


def default_depths(capacity: int, steps: int) -> tuple[int, ...]:
    """A quarter, a half and all of a cache, as far as ``steps`` measured tokens leave room."""
    return tuple(sorted({max(WARM_UP_STEPS, capacity * i // 4 - steps) for i in (1, 2, 4)}))


def check_plan(plan: Plan, capacity: int) -> None:
    """Refuse a plan that makes no sense, or does not fit a cache of ``capacity`` positions."""
    first, last = plan.depths[0], plan.depths[-1]
    if first < plan.warm_up_steps:
        raise EdgeQKVError(f"depth {first} is too small: {plan.warm_up_steps} warm-up tokens come before it")
    if last + plan.steps > capacity:
        raise EdgeQKVError(
            f"depth {last} and {plan.steps} measured steps do not fit a cache of {capacity} positions; "
            "lower --depths or --steps"
        )
    if plan.rounds < 1 or plan.steps < 1 or plan.prompt < 1:
        raise EdgeQKVError("rounds, steps and prompt must be at least 1")
    if plan.precision is not None and not 0 < plan.precision <= 1:
        raise EdgeQKVError(f"the precision is above 0 % and at most 100 %, found {plan.precision:.4g}")
    for seconds in (plan.time_s, plan.sustain_s):
        if seconds is not None and not 0 < seconds <= LONGEST:
            raise EdgeQKVError(f"a time is above 0 and at most {LONGEST / 3600:g} hours, found {seconds:g} s")
    if plan.threads < 1:
        raise EdgeQKVError(f"threads must be at least 1, found {plan.threads}")
    if not 0 <= plan.cool_down_s <= LONGEST_COOL_DOWN:
        raise EdgeQKVError(f"the cool-down is between 0 and {LONGEST_COOL_DOWN:g} seconds, found {plan.cool_down_s:g}")
