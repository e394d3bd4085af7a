"""``edgeqkv study``: the runs of a recipe are trained once each, and the table says what their logs say."""

import statistics

import pytest
from conftest import one_sentence
from msgspec.structs import replace

from edgeqkv.config import with_variant
from edgeqkv.training.log import End, Log, Start, Step, Stretch, log_text, read_log
from edgeqkv.training.recipe import base_config, known_recipes, read_recipe, with_positions

RECIPE = """
legs = [{ steps = 2, peak = 1e-3 }]
batch = 2
warmup = 0
runs = [
  { variant = "QKV", seed = 1 },
  { variant = "Q-K=V", seed = 1, positions = "rotary-turned" },
]
geometry = { n_layer = 1, d_model = 64, n_head = 2, n_positions = 32, vocab_size = 300 }
"""


def test_learning_rate_warms_up_and_falls_in_each_leg():
    recipe = replace(read_recipe("tales").recipe, warmup=100)
    recipe = replace(recipe, legs=(replace(recipe.legs[0], steps=1000, peak=1.0), replace(recipe.legs[1], steps=500, peak=0.5)))
    assert recipe.steps == 1500
    rates = [recipe.learning_rate(step) for step in range(recipe.steps)]
    assert rates[99] == 1.0
    assert rates[999] == pytest.approx(0.1, rel=1e-3)
    assert rates[1099] == 0.5
    assert rates[1499] == pytest.approx(0.05, rel=1e-3)
    assert rates[99:1000] == sorted(rates[99:1000], reverse=True)


def test_the_shipped_recipes_are_what_the_documentation_says():
    assert known_recipes() == ["heal", "paper-300m", "study", "tales"]
    paper, study, tales = (read_recipe(name).recipe for name in ("paper-300m", "study", "tales"))
    assert (paper.betas, paper.weight_decay, paper.clip, paper.warmup) == ((0.9, 0.95), 0.1, 1.0, 500)
    assert paper.steps * paper.batch * 2048 == pytest.approx(10e9, rel=1e-4)
    assert tales.steps * tales.batch * 512 == 10_240_000
    runs = [(planned.variant, planned.positions) for planned in study.runs]
    seeds = {run: runs.count(run) for run in runs}
    wanted = dict.fromkeys(("GQA-2", "MQA", "Q-GQA-2", "Q=K-V", "Q=K=V"), 1) | dict.fromkeys(("QKV", "Q-K=V", "Q-MQA"), 3)
    assert {variant: count for (variant, positions), count in seeds.items() if positions == "learned"} == wanted
    assert [run for run in runs if run[1] != "learned"] == [("Q-K=V", "rotary"), ("Q-K=V", "rotary-turned")]
    assert len({planned.name for planned in study.runs}) == len(runs)


def test_a_study_trains_what_is_missing_and_then_prints_alone(cli, tmp_path):
    (tmp_path / "toy.toml").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("the cat sat on a mat " * 400)
    (tmp_path / "held.txt").write_text("a mat sat on the cat " * 100)
    command = ["study", tmp_path / "s", "--recipe", tmp_path / "toy.toml", "--text", tmp_path / "text.txt"]
    command += ["--held-out", tmp_path / "held.txt", "--threads", 1]
    first = cli(*command)
    assert "run 2 of 2: Q-K=V-rotary-turned-1" in first.err
    names = ["Q-K=V-rotary-turned-1", "Q-K=V-rotary-turned-1.jsonl", "QKV-1", "QKV-1.jsonl"]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == names
    (tmp_path / "s/QKV-1.jsonl").unlink()  # killed between the model and its log
    again = cli(*command)
    assert "step" not in again.err
    printed = cli("study", tmp_path / "s").out
    assert again.out == printed
    assert first.out.endswith(printed)
    log = read_log(tmp_path / "s/Q-K=V-rotary-turned-1.jsonl")
    assert f"| Q-K=V, rotary-turned | 1 | {log.start.parameters:,} " in " ".join(printed.split())
    assert one_sentence(cli(*command[:-4])).startswith("edgeqkv: to train, give both --text and --held-out")


def write_log(folder, variant, seed, perplexity, positions="learned", **changes):
    config = with_positions(with_variant(base_config(read_recipe("study").recipe), variant), positions)
    start = Start(
        recipe="study",
        variant=variant,
        seed=seed,
        config=config,
        parameters=900_000,
        steps=4000,
        tokens_a_step=2048,
        precision="bf16",
        text_tokens=1000,
        text_sha256="0",
        held_out_tokens=100,
        held_out_sha256="0",
        held_out_titles=(),
        source=None,
        device="cpu",
        threads=1,
        torch="2",
        edgeqkv="0",
    )
    end = End(perplexity, 2.0, 100, (Stretch(0, 16, 2 * perplexity), Stretch(16, 256, perplexity)))
    lines = [replace(start, **changes), Step(4000, 4.0, 4.0, 1.0), end]
    (folder / f"{variant}-{positions}-{seed}.jsonl").write_text(log_text(lines))
    return Log(lines[0], (lines[1],), end)


def test_the_table_compares_seed_by_seed_and_stands_beside_the_paper(cli, tmp_path):
    for seed, (qkv, shared) in enumerate([(50.0, 52.0), (52.0, 54.6)], 1):
        write_log(tmp_path, "QKV", seed, qkv)
        write_log(tmp_path, "Q-K=V", seed, shared)
    write_log(tmp_path, "GQA-2", 1, 51.0)
    write_log(tmp_path, "Q-K=V", 1, 49.0, "rotary")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in cli("study", tmp_path).out.splitlines()]
    rows = {line[0]: line[1:] for line in lines[:6]}
    assert list(rows)[2:] == ["QKV", "Q-K=V", "GQA-2", "Q-K=V, rotary"]
    assert rows["QKV"] == ["2", "900,000", "512", "51.00", "1.41", "", "5.11"]
    spread = statistics.stdev([4.0, 5.0])
    assert rows["Q-K=V"] == ["2", "900,000", "256", "53.30", "1.84", f"+4.5 ± {spread:.1f} %", "5.27 (+3.1 %)"]
    assert rows["GQA-2"] == ["1", "900,000", "256", "51.00", "one seed", "+2.0 %", "5.15 (+0.8 %)"]
    assert rows["Q-K=V, rotary"] == ["1", "900,000", "320", "49.00", "one seed", "-2.0 %", ""]
    assert ["Q-K=V", "106.60", "53.30"] in lines


def test_runs_that_are_not_alike_are_not_compared(cli, tmp_path):
    write_log(tmp_path, "QKV", 1, 50.0)
    write_log(tmp_path, "MQA", 1, 50.0, text_sha256="1")
    assert "is of another study than" in one_sentence(cli("study", tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not the log of a finished run"),
        ("{}", "line 1"),
        ('{"kind": "step"}\n', "line 1"),
        ("no\n", "is not a JSON file"),
    ],
)
def test_a_wrong_log_is_refused_in_a_sentence(cli, tmp_path, content, reason):
    (tmp_path / "x.jsonl").write_text(content)
    refused = cli("study", tmp_path)
    assert reason in one_sentence(refused)
    assert refused.code == 2


def test_a_folder_without_logs_and_a_recipe_without_runs_are_refused(cli, tmp_path):
    assert "holds no logs" in one_sentence(cli("study", tmp_path))
    (tmp_path / "t.txt").write_text("text")
    refused = cli("study", tmp_path, "--recipe", "tales", "--text", tmp_path / "t.txt", "--held-out", tmp_path / "t.txt")
    assert "lists no runs" in one_sentence(refused)
