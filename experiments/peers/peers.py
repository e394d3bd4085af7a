"""llama.cpp and edgeqkv at 300M parameters, in turns: make bench-peers, or python peers.py FOLDER 8|4 [BUNDLES].

Random weights: they show memory and speed, nothing else. One call is one interleaved run with weights of 8 or of 4 bits: each
engine is a process of its own that holds one model, and a turn is a few tokens of one of them while the others wait. What was
measured is appended to FOLDER/8-bit.jsonl; the table is made of all that is there.
"""

import json
import shlex
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_file import write_gguf

from edgeqkv.bench.device import LOCAL
from edgeqkv.bench.memory import Memory
from edgeqkv.bench.protocol import Done, Elapsed, Loaded, Steps
from edgeqkv.bench.worker_process import WorkerProcess
from edgeqkv.model_folder import read_model
from edgeqkv.native import RUNNER, native_file, runtime_libraries
from edgeqkv.presets import new_model
from edgeqkv.targets import targets

THREADS, SHALLOW, DEEP, PROMPT = 2, 16, 2000, 512
TURNS, PROMPTS, STEPS, WARM_UP = 6, 1, 6, 2


@dataclass(frozen=True)
class Engine:
    title: str
    weights: str
    cache: str
    command: tuple[str, ...]
    fill: dict[str, str]  # how positions are filled, whose rows the clock cannot tell from others
    load: dict[str, Any] | None = None  # the first request, if it needs one

    def start(self) -> WorkerProcess:
        process = WorkerProcess(LOCAL, f"exec {shlex.join(self.command)}", self.title)
        if self.load:
            process.ask(Loaded, "load", **self.load)
        return process


def llama_engines(folder: Path, weights: str) -> list[Engine]:
    worker = str(Path(__file__).with_name("llama_worker.py"))
    engines = []
    for variant in ("QKV", "MQA"):
        path = gguf_file(folder, variant, weights)
        for cache, flash in (("f16", "off"), ("f16", "on"), ("q8_0", "on")):  # a q8_0 V needs flash attention
            title = f"llama.cpp {'MHA' if variant == 'QKV' else variant}" + (", flash attention" if flash == "on" else "")
            command = (sys.executable, worker, str(path), cache, flash, str(THREADS))
            rows = folder / f"{variant.lower()}-{cache}-{flash}-{DEEP}.rows"
            engines.append(Engine(title, weights, cache, command, {"rows": str(rows)}))
    return engines


def gguf_file(folder: Path, variant: str, weights: str) -> Path:
    model, path = folder / "models" / variant.lower(), folder / f"{variant.lower()}-{weights}.gguf"
    if not model.is_dir():
        new_model("paper-300m", variant, model)
    if not path.is_file():
        write_gguf(read_model(model), weights, path)
    return path


def our_engines(bundles: Path, weights: str) -> list[Engine]:
    """QKV as a team has it today, and ours; for 4 bits the 8-bit Q-MQA again, which ties the two runs together."""
    wanted = [
        ("QKV stock", "qkv-fp32", "onnx", "stock", "int8", "fp32"),
        ("QKV", "qkv-fp32", "executorch", "fused", "int8", "fp32"),
        ("Q-K=V", "q-kv-int8", "onnx", "fused", "int8", "int8"),
        ("Q-K=V", "q-kv-int8", "executorch", "fused", "int8", "int8"),
        ("Q-MQA", "q-mqa-int8", "onnx", "fused", "int8", "int8"),
        ("Q-MQA", "q-mqa-int8", "executorch", "fused", "int8", "int8"),
    ]
    if weights == "Q4_0":
        wanted = [
            ("Q-K=V", "q-kv-int4", "onnx", "fused", "int4", "int8"),
            ("Q-K=V", "q-kv-int4", "executorch", "fused", "int4", "int8"),
            ("Q-MQA", "q-mqa-int4", "onnx", "fused", "int4", "int8"),
            ("Q-MQA", "q-mqa-int4", "executorch", "fused", "int4", "int8"),
            ("Q-MQA", "q-mqa-int8", "onnx", "fused", "int8", "int8"),
        ]
    command = (str(native_file(RUNNER)), "--worker", *runtime_libraries())
    return [
        Engine(
            f"{title}, {targets()[runtime].title}",
            stored,
            cache,
            command,
            {"how": "zeros"},
            {"bundle": str(bundles / name), "runtime": runtime, "kernel": kernel, "threads": THREADS},
        )
        for title, name, runtime, kernel, stored, cache in wanted
    ]


def measure(engines: list[Engine]) -> list[dict[str, Any]]:
    """One record an engine: seconds of each turn, in the order of the turns."""
    processes = [engine.start() for engine in engines]
    seconds: list[dict[str, list[float]]] = [{"deep": [], "prompt": [], "shallow": []} for _ in engines]
    for engine, process in zip(engines, processes, strict=True):
        process.ask(Done, "fill", depth=DEEP, **engine.fill)

    def step(process: WorkerProcess, depth: int) -> float:
        return statistics.median(process.ask(Steps, "decode", depth=depth, warm_up=WARM_UP, steps=STEPS).seconds)

    def read(process: WorkerProcess, tokens: int) -> float:
        return process.ask(Elapsed, "prefill", depth=0, tokens=tokens).seconds / tokens

    for turns, name, timed, size in (
        (TURNS, "deep", step, DEEP),
        (PROMPTS, "prompt", read, PROMPT),
        (TURNS, "shallow", step, SHALLOW),
    ):
        for turn in range(turns):
            # Back and forth, so that nobody always follows the same one.
            for i in range(len(processes))[:: 1 if turn % 2 == 0 else -1]:
                seconds[i][name].append(timed(processes[i], size))
    records = [
        {"title": e.title, "weights": e.weights, "cache": e.cache, "peak_mib": peak_mib(p), "seconds": s}
        for e, p, s in zip(engines, processes, seconds, strict=True)
    ]
    for process in processes:
        process.close()
    return records


def peak_mib(process: WorkerProcess) -> float:
    """The highest resident set so far, with the pages of mapped files."""
    peak = process.ask(Memory, "memory").peak_rss
    assert peak is not None
    return peak / 2**20


def table(runs: list[list[dict[str, Any]]]) -> str:
    """Medians over all turns of all runs, and in brackets the quartiles."""
    lines = [
        f"| engine | weights | cache | ms a token at {SHALLOW} | at {DEEP} | in a prompt of {PROMPT} | peak MiB |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for records in zip(*runs, strict=True):
        first = records[0]
        times = [
            quartiles([1e3 * s for record in records for s in record["seconds"][name]])
            for name in ("shallow", "deep", "prompt")
        ]
        peak = statistics.median(record["peak_mib"] for record in records)
        lines.append(f"| {first['title']} | {first['weights']} | {first['cache']} | {' | '.join(times)} | {peak:,.0f} |")
    return "\n".join(lines)


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def main() -> None:
    folder, bits = Path(sys.argv[1]), sys.argv[2]
    bundles = Path(sys.argv[3] if len(sys.argv) > 3 else "build/bench")
    weights = {"8": "Q8_0", "4": "Q4_0"}[bits]
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{bits}-bit.jsonl"
    records = measure(llama_engines(folder, weights) + our_engines(bundles, weights))
    with results.open("a") as file:
        file.write(json.dumps(records) + "\n")
    runs = [json.loads(line) for line in results.read_text().splitlines()]
    names = ("llama-cpp-python", "onnxruntime", "executorch", "edgeqkv")
    print(", ".join(f"{name} {version(name)}" for name in names), f"{THREADS} threads, {len(runs)} runs", sep="; ")
    print(table(runs))


if __name__ == "__main__":
    main()
