"""``edgeqkv bench`` and ``edgeqkv devices``: options to plain values, results to stdout."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import note


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to compare; a QKV baseline comes along by itself.")],
    device: Annotated[
        list[str] | None, typer.Option(help="local, ssh://user@host[:port], adb://SERIAL or adb://host:port; once for each.")
    ] = None,
    runtimes: Annotated[str | None, typer.Option(help="onnx, ..., separated by commas; by default each bundle's best.")] = None,
    kernels: Annotated[
        str | None, typer.Option(help="fused, stock, or both separated by a comma; by default each bundle's best.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Filled positions to decode at: 128,1024 or 128-2048*2 or 0-1000+250.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="A list like 1,2,4; by default one for each core.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that every cell is visited.")] = 5,
    steps: Annotated[int, typer.Option(help="Tokens measured at each visit.")] = 8,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt, and of a prefill that ends at each depth.")] = 128,
    cool_down: Annotated[float, typer.Option(help="Seconds of rest between rounds.")] = 1.0,
    baseline: Annotated[bool, typer.Option(help="Bring a QKV bundle of the same geometry along.")] = True,
    results: Annotated[Path | None, typer.Option("--results", help="Append the raw records here, as JSON lines.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from what --results holds of these cells.")] = False,
    again_throttled: Annotated[
        bool, typer.Option("--again-throttled", help="With --resume: measure runs that throttled again.")
    ] = False,
    output: Annotated[str, typer.Option(help="md, csv, json or jsonl.")] = "md",
    ram_budget: Annotated[str | None, typer.Option(help="Show the largest capacity that fits in it: 512MiB, 2GiB.")] = None,
    runner: Annotated[
        list[str] | None, typer.Option(help="The file edgeqkv-run for a device's processor, or python; once for each.")
    ] = None,
    library: Annotated[list[Path] | None, typer.Option(help="A runtime's library for a --runner; once for each.")] = None,
    python: Annotated[str | None, typer.Option(help="Python on the devices; by default python3.")] = None,
    emulator: Annotated[
        str | None, typer.Option(help='Command on the device that runs the --runner ("qemu-aarch64 -L DIR"); nothing is timed.')
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Folder of the devices that gets one of ours, edgeqkv-bench.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Configuration file for ssh, instead of your own.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what was sent from the devices at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
) -> None:
    """Measure memory and latency, all bundles in turn in one run on each device."""
    from edgeqkv.bench.baseline import with_baselines
    from edgeqkv.bench.device import Connections
    from edgeqkv.bench.fleet import Matrix, measure_devices
    from edgeqkv.bench.options import chosen, numbers, parse_size
    from edgeqkv.bench.program import Programs
    from edgeqkv.bench.results import append, read_results
    from edgeqkv.bench.summary import FORMATS, written
    from edgeqkv.bundle import Kernel, Runtime
    from edgeqkv.progress import progress_bar, progress_bars

    if output not in FORMATS:
        raise EdgeQKVError(f"--output {output!r} is not one of {', '.join(FORMATS)}")
    if results is not None and not results.resolve().parent.is_dir():  # before minutes of measuring, not after
        raise EdgeQKVError(f"cannot write {results}: the folder {results.parent} does not exist")
    if resume and results is None:
        raise EdgeQKVError("--resume needs --results with the file of the run that was interrupted")
    if folder is not None and not folder.startswith("/"):
        raise EdgeQKVError(f"--folder {folder!r} is not an absolute path; name one of the device")
    names = list(dict.fromkeys(device or ["local"]))
    budget = parse_size(ram_budget, "--ram-budget")
    matrix = Matrix(
        runtimes=chosen(runtimes, "--runtimes", get_args(Runtime)),
        kernels=chosen(kernels, "--kernels", get_args(Kernel)),
        depths=tuple(numbers(depths, "--depths")) if depths is not None else None,
        threads=tuple(numbers(threads, "--threads")) if threads is not None else (None,),
        rounds=rounds,
        steps=steps,
        prompt=prompt,
        cool_down=cool_down,
    )
    if 0 in matrix.threads:
        raise EdgeQKVError("threads must be at least 1, found 0")
    earlier, _ = read_results([results]) if resume and results is not None and results.exists() else ([], [])
    if again_throttled:
        earlier = [record for record in earlier if not record.throttled]
    with progress_bar("bench") as update:
        subjects = with_baselines(bundles, baseline, lambda what: update(what, 0, 0), note)
    connections = Connections(folder, ssh_config)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with progress_bars(names) as bars:
            outcome = measure_devices(
                names,
                subjects,
                matrix,
                Programs(tuple(runner or ()), tuple(library or ()), python, emulator),
                connections,
                earlier,
                clean,
                lambda name: bars[name],
                lambda records: append(results, records) if results is not None else None,
            )
    except KeyboardInterrupt:
        kept = f"what was measured is in {results}; the same command with --resume goes on" if results else "nothing was kept"
        note(f"interrupted: {kept}")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
        connections.close()
    if not outcome.records:
        raise outcome.errors[0]
    print(written(outcome.records, "json" if as_json else output, budget))
    for failed in outcome.failures:
        note(failed.message)
    if outcome.failures:
        raise typer.Exit(1)


def devices(
    device: Annotated[list[str] | None, typer.Argument(help="More to describe: ssh://user@host, adb://host:port.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Configuration file for ssh, instead of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List and describe what can be measured on: this machine, what adb sees, and what you name."""
    from edgeqkv.bench.device import Connections, attached
    from edgeqkv.bench.fleet import look_at
    from edgeqkv.tables import table

    names = list(dict.fromkeys(["local", *(name for name, _ in attached()), *(device or [])]))
    connections, found = Connections(ssh_config=ssh_config), list[dict[str, Any]]()
    try:
        for name in names:
            try:
                found.append({"device": name, "problem": None, "environment": look_at(connections.open(name))})
            except EdgeQKVError as error:
                found.append({"device": name, "problem": str(error), "environment": None})
    finally:
        connections.close()
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, default=dataclasses.asdict))
        return
    print(table(["device", "model", "SoC, CPU", "cores", "RAM MiB", "OS", "free disk MiB"], [_described(e) for e in found]))
    for entry in found:
        if entry["problem"]:
            note(entry["problem"])


def _described(entry: dict[str, Any]) -> list[str]:
    from edgeqkv.tables import mib

    e = entry["environment"]
    if e is None:
        return [entry["device"], *["unknown"] * 6]
    clusters = " + ".join(f"{c.cores} × {c.max_khz / 1e6:.2f} GHz" for c in e.clusters or ())
    cores = f"{e.cores} ({clusters})" if clusters else e.cores
    soc = ", ".join(filter(None, (e.soc, e.cpu)))
    values = (e.model, soc, cores, mib(e.memory_bytes, 0), e.os, mib(e.disk_free_bytes, 0))
    return [entry["device"], *(str(value) if value else "unknown" for value in values)]
