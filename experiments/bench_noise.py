"""Does ``edgeqkv bench`` call two identical bundles different, and does it find a difference that is there?

``record`` measures one bundle beside itself and keeps the median of each visit: noise of this machine, quiet or beside another
program. ``simulate`` draws runs from such noise (blocks of rounds that follow each other, so that what lasts some rounds stays
together), lets them end by bench's own rule, once as they are and once with one of the two bundles slowed down, and counts what
bench would have said.

    python experiments/bench_noise.py simulate tests/bench/noise/*.json
    python experiments/bench_noise.py record build/demo/q-mqa noise.json --rounds 80 --load loaded
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.plan import PRECISION, ROUNDS, TIME_S
from edgeqkv.bench.ratio import MOST_WAITED, SMALLEST, interval, observations, round_medians
from edgeqkv.bench.record import Record
from edgeqkv.bench.results import read_results
from edgeqkv.tables import table

BLOCK = 2  # starts that stay together: they are one observation
# Another program: a core for up to two seconds, then a rest of up to two.
SOMETIMES = """
import random, time
random = random.Random(0)
while True:
    end = time.monotonic() + random.uniform(0, 2)
    while time.monotonic() < end:
        pass
    time.sleep(random.uniform(0, 2))
"""
ALWAYS = "while True: pass"
LOADS = {
    "none": [],
    "loaded": [SOMETIMES],
    "crowded": [ALWAYS] * 3,
}
LOAD_WORDS = {
    "none": "none",
    "loaded": "another program takes a core half of the time",
    "crowded": "three others take a core each",
}


@dataclass(frozen=True)
class Noise:
    """``logs`` holds for each depth one logarithm a round: the first process of a bundle over the second one of the same. It is
    None for a round that does not count, because one of them had to wait for a processor."""

    name: str
    seconds_a_round: float
    rounds_a_start: int
    logs: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Verdict:
    """Shares of the runs of default length. ``said`` is "different" at the end, of the deepest depth; ``anywhere`` of any
    depth; ``ever`` of any depth after any round, had it ended there; ``rounds`` is their median number."""

    said: float
    anywhere: float
    ever: float
    rounds: int
    precise: float


def read_noise(path: Path) -> Noise:
    data = json.loads(path.read_text())
    logs = [
        tuple(
            math.log(one / other) if max(waited) <= MOST_WAITED else None
            for one, other, *waited in zip(*depth["microseconds"], *depth["waited"], strict=True)
        )
        for depth in data["depths"]
    ]
    return Noise(path.stem, data["seconds_a_round"], data["rounds_a_start"], tuple(logs))


def simulated(noise: Noise, slowdown: float, runs: int, seed: int) -> Verdict:
    random_ = random.Random(seed)
    said = anywhere = ever = precise = 0
    lengths = []
    most = max(1, int(TIME_S / noise.seconds_a_round))
    for _ in range(runs):
        drawn = _drawn(noise, most, slowdown, random_)
        was_said = False
        for rounds in range(BLOCK * noise.rounds_a_start, most + 1, BLOCK * noise.rounds_a_start):  # in between nothing is new
            found = [interval(observations(logs[:rounds], noise.rounds_a_start)) for logs in drawn]
            different = [one is not None and differs(*one) for one in found]
            was_said |= any(different)
            narrow = all(one is not None and one[1] <= math.log1p(PRECISION) for one in found)
            if narrow and rounds >= ROUNDS:
                break
        said += different[-1]
        anywhere += any(different)
        ever += was_said
        precise += narrow
        lengths.append(rounds)
    return Verdict(said / runs, anywhere / runs, ever / runs, sorted(lengths)[runs // 2], precise / runs)


def differs(middle: float, half: float) -> bool:
    """As :attr:`edgeqkv.bench.ratio.Ratio.differs`, of logarithms."""
    return abs(middle) - half > math.log1p(SMALLEST)


def _drawn(noise: Noise, rounds: int, slowdown: float, random_: random.Random) -> list[list[float | None]]:
    """A run's logarithms for each depth. Which of the two identical ones is the first is drawn, too."""
    block = BLOCK * noise.rounds_a_start
    there = len(noise.logs[0]) // block
    starts = [block * random_.randrange(there) for _ in range(-(-rounds // block))]
    picked = [start + i for start in starts for i in range(block)][:rounds]
    sign, shift = random_.choice((-1, 1)), math.log(slowdown)
    return [[None if logs[i] is None else sign * logs[i] + shift for i in picked] for logs in noise.logs]


def simulate(files: Sequence[Path], runs: int) -> str:
    rows = []
    for path in files:
        noise = read_noise(path)
        same, slower = simulated(noise, 1.0, runs, seed=0), simulated(noise, 1.1, runs, seed=1)
        shares = f"{same.anywhere:.2%}", f"{same.ever:.2%}", f"{slower.said:.1%}", f"{same.precise:.0%}"
        rows.append([noise.name, f"{noise.seconds_a_round:.1f}", *shares, str(same.rounds)])
    header = ["noise", "s a round", "identical: different", "identical: ever", "10 % slower: found", "ended precise", "rounds"]
    return table(header, rows)


def record(bundle: Path, out: Path, rounds: int, depths: str, load: str, more: Sequence[str]) -> None:
    """``more`` are further arguments of ``edgeqkv bench``."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "r.jsonl"
        command = [sys.executable, "-m", "edgeqkv.cli", "bench", bundle, bundle, "--no-baseline", "--rounds", str(rounds)]
        command += ["--depths", depths, "--prompt", "16", "--results", results, *more]
        others = [subprocess.Popen([sys.executable, "-c", program]) for program in LOADS[load]]
        start = time.monotonic()
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        finally:
            for other in others:
                other.kill()
        seconds = time.monotonic() - start
        one, two = read_results([results])[0]
    out.write_text(json.dumps(noise_of(one, two, seconds, load)) + "\n")


def noise_of(one: Record, two: Record, seconds: float, load: str) -> dict[str, object]:
    """What the file holds, of the two records of a run that took so long."""
    e, s, rounds = one.environment, one.subject, one.rounds_done
    origin = {
        "what": f"{s.variant} ({s.weights} weights, {s.cache} cache, {s.runtime} {s.kernel}) beside itself: medians of visits",
        "machine": f"{e.cpu}, {e.cores} cores, {e.os_kernel}",
        "load": LOAD_WORDS[load],
        "time": one.time,
        "program": f"{one.program.name}, {one.plan.threads} threads",
    }
    depths = [
        {
            "depth": both[0].depth,
            "microseconds": [[round(1e6 * median, 2) for median in round_medians(t.seconds, rounds)] for t in both],
            "waited": [[round(share, 3) for share in t.waited] for t in both],
        }
        for both in zip(one.timings.decode, two.timings.decode, strict=True)
    ]
    return {
        "origin": origin,
        "seconds_a_round": round(seconds / rounds, 2),
        "rounds_a_start": one.plan.rounds_a_start,
        "depths": depths,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("simulate")
    one.add_argument("noise", type=Path, nargs="+")
    one.add_argument("--runs", type=int, default=2000)
    other = commands.add_parser("record")
    other.add_argument("bundle", type=Path)
    other.add_argument("out", type=Path)
    other.add_argument("--rounds", type=int, default=80)
    other.add_argument("--depths", default="16,200")
    other.add_argument("--load", choices=LOADS, default="none")
    arguments, more = parser.parse_known_args()
    if arguments.command == "simulate":
        print(simulate(arguments.noise, arguments.runs))
    else:
        record(arguments.bundle, arguments.out, arguments.rounds, arguments.depths, arguments.load, more)


if __name__ == "__main__":
    main()
