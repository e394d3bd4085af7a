"""``edgeqkv bench`` and ``edgeqkv devices``: options to plain values, results to stdout."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
import typer

from edgeqkv.bench.plan import PRECISION, ROUNDS, TIME_S, VISIT_S, WARM_UP_STEPS, Filling, Plan, rounds_a_start
from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import note

if TYPE_CHECKING:
    from edgeqkv.bench.machine import Environment


def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(help="Bundles to compare, FOLDER:stock or FOLDER:fused for one kernel; a baseline comes along."),
    ],
    device: Annotated[
        list[str] | None, typer.Option(help="local, ssh://user@host[:port], adb://SERIAL or adb://host:port; once for each.")
    ] = None,
    runtimes: Annotated[str | None, typer.Option(help="onnx, ..., separated by commas; by default each bundle's best.")] = None,
    kernels: Annotated[
        str | None, typer.Option(help="fused, stock, or both separated by a comma; by default each bundle's best.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Filled positions to decode at: 128,1024 or 128-2048*2 or 64-1000+250.")
    ] = None,
    threads: Annotated[str | None, typer.Option(help="A list like 1,2,4; by default one for each core.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Go on until every ratio of speeds is known to this, half its interval; by default 3%.")
    ] = None,
    limit: Annotated[str | None, typer.Option("--time", help="But end after this time: 90s, 5m or 1h; by default 5m.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Visit every bundle so many times instead, whatever the precision and the time.")
    ] = None,
    sustain: Annotated[
        str | None, typer.Option(help="Then decode each bundle for this time without a rest (10m): its speed while hot.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Tokens decoded in a row; a visit repeats that until it has timed 50 ms.")] = 8,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt, and of a prefill that ends at each depth.")] = 128,
    cool_down: Annotated[float, typer.Option(help="Seconds of rest between rounds.")] = 0.0,
    fill: Annotated[
        Filling, typer.Option(help="Reach a depth by prefilling tokens, or quickly by writing rows of zeros.")
    ] = "prefill",
    baseline: Annotated[
        bool,
        typer.Option(
            help="Bring the standard model of the same geometry along (QKV, or MLA expanded), with the target's default cache; "
            "one with random weights is made if need be, and the last 4 are kept in the user's cache folder."
        ),
    ] = True,
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
    in_app: Annotated[
        bool, typer.Option("--in-app", help="On Android: measure inside the app, which is installed if need be.")
    ] = False,
    apk: Annotated[Path | None, typer.Option(help="That app; by default what make apk has built.")] = None,
    folder: Annotated[str | None, typer.Option(help="Folder of the devices that gets one of ours, edgeqkv-bench.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Configuration file for ssh, instead of your own.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what was sent from the devices at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output json.")] = False,
) -> None:
    """Measure memory and latency, all bundles in turn in one run on each device."""
    from edgeqkv.bench.matrix import Matrix
    from edgeqkv.bench.options import chosen, numbers, parse_percent, parse_size, parse_time
    from edgeqkv.bench.program import APK, Programs
    from edgeqkv.bench.run import Fleet, Results, run
    from edgeqkv.bench.summary import FORMATS, written
    from edgeqkv.manifest import Kernel
    from edgeqkv.targets import targets

    if output not in FORMATS:
        raise EdgeQKVError(f"--output {output!r} is not one of {', '.join(FORMATS)}")
    if apk is not None and not in_app:
        raise EdgeQKVError("--apk names the app for --in-app; give both")
    if rounds is not None and (precision or limit):
        raise EdgeQKVError("--rounds says how often to measure; leave it out for --precision and --time")
    budget = parse_size(ram_budget, "--ram-budget")
    plan = Plan(
        depths=(),
        threads=0,
        prompt=prompt,
        warm_up_steps=WARM_UP_STEPS,
        steps=steps,
        rounds=ROUNDS if rounds is None else rounds,
        cool_down_s=cool_down,
        filled=fill,
        rounds_a_start=rounds_a_start(rounds),
        visit_s=VISIT_S,
        precision=None if rounds is not None else parse_percent(precision, "--precision") if precision else PRECISION,
        time_s=None if rounds is not None else parse_time(limit, "--time") if limit else TIME_S,
        sustain_s=parse_time(sustain, "--sustain") if sustain else None,
    )
    matrix = Matrix(
        plan,
        runtimes=chosen(runtimes, "--runtimes", tuple(targets())),
        kernels=chosen(kernels, "--kernels", get_args(Kernel)),
        depths=tuple(numbers(depths, "--depths")) if depths is not None else None,
        threads=tuple(numbers(threads, "--threads")) if threads is not None else (None,),
    )
    programs = Programs(tuple(runner or ()), tuple(library or ()), python, emulator, (apk or APK) if in_app else None)
    fleet = Fleet(tuple(dict.fromkeys(device or ["local"])), folder, ssh_config, clean)
    try:
        outcome = run(bundles, fleet, matrix, programs, Results(results, resume, again_throttled), baseline)
    except KeyboardInterrupt:
        kept = f"what was measured is in {results}; the same command with --resume goes on" if results else "nothing was kept"
        note(f"interrupted: {kept}")
        raise typer.Exit(130) from None
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
    from edgeqkv.bench.device import attached, connections
    from edgeqkv.bench.probe import look_at
    from edgeqkv.tables import table

    names = list(dict.fromkeys(["local", *(name for name, _ in attached()), *(device or [])]))
    found: dict[str, Environment | EdgeQKVError] = {}
    with connections(ssh_config=ssh_config) as opened:
        for name in names:
            try:
                found[name] = look_at(opened.open(name))
            except EdgeQKVError as error:
                found[name] = error
    problems = {name: str(seen) for name, seen in found.items() if isinstance(seen, EdgeQKVError)}
    environments = {name: seen for name, seen in found.items() if not isinstance(seen, EdgeQKVError)}
    if as_json:
        entries = [{"device": n, "problem": problems.get(n), "environment": environments.get(n)} for n in names]
        print(msgspec.json.format(msgspec.json.encode(entries), indent=2).decode())
        return
    rows = [_described(name, environments.get(name)) for name in names]
    print(table(["device", "model", "SoC, CPU", "cores", "RAM MiB", "OS", "free disk MiB"], rows))
    for problem in problems.values():
        note(problem)


def _described(name: str, e: "Environment | None") -> list[str]:
    from edgeqkv.tables import mib

    if e is None:
        return [name, *["unknown"] * 6]
    clusters = " + ".join(f"{c.cores} × {c.max_khz / 1e6:.2f} GHz" for c in e.clusters or ())
    cores = f"{e.cores} ({clusters})" if clusters else e.cores
    soc = ", ".join(filter(None, (e.soc, e.cpu)))
    values = (e.model, soc, cores, mib(e.memory_bytes, 0), e.os, mib(e.disk_free_bytes, 0))
    return [name, *(str(value) if value else "unknown" for value in values)]
