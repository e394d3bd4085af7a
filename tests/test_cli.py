"""The command line: results on stdout, one sentence on stderr, exit codes 0, 1, 2, 3."""

import json
import subprocess
import sys

import pytest
from conftest import GOLDEN, one_sentence

import edgeqkv


@pytest.fixture
def bundle(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", capacity=32)
    return tmp_path / "bundle"


@pytest.fixture
def text_bundle(tiny_model, tmp_path, letters):
    edgeqkv.export(tiny_model("Q-K=V", letters, token_count=256), tmp_path / "text")
    return tmp_path / "text"


def test_import_export_verify_generate(cli, tmp_path):
    assert cli("import", GOLDEN / "q_mqa.pt", "--out", tmp_path / "m").code == 0
    exported = cli("export", tmp_path / "m", "--out", tmp_path / "b", "--weights", "fp32", "--target", "onnx")
    assert exported.code == 0
    assert "Q-MQA, fp32 weights" in exported.out
    assert cli("verify", tmp_path / "b", "--against", GOLDEN / "q_mqa.pt", "--tokens", 100).code == 0
    written = cli("generate", tmp_path / "b", "--ids", "1,2,3", "--tokens", 5)
    assert len(written.out.strip().split(",")) == 5


def test_a_checkpoint_exports_directly(cli, tmp_path):
    assert cli("export", GOLDEN / "gqa.pt", "--out", tmp_path / "b").code == 0
    assert edgeqkv.open(tmp_path / "b").manifest.model.variant == "GQA-2"


def test_generate_streams_text_after_the_prompt(cli, text_bundle):
    first = cli("generate", text_bundle, "--prompt", "abc é", "--tokens", 8, "--temperature", 1, "--seed", 3)
    again = cli("generate", text_bundle, "--prompt", "abc é", "--tokens", 8, "--temperature", 1, "--seed", 3)
    assert first.out.startswith("abc é")
    assert first.out == again.out
    assert first.code == 0


def test_inspect_shows_every_variant(cli, bundle, tiny_model):
    shown = cli("inspect", tiny_model("Q-MQA")).out
    for name in ("QKV", "Q-K=V", "Q=K-V", "Q=K=V", "GQA-2", "MQA", "Q-GQA-2", "Q-MQA <"):
        assert f"| {name} " in shown
    seen = json.loads(cli("inspect", bundle, "--json").out)
    assert (seen["kind"], seen["capacity"], seen["cache_dtype"]) == ("bundle", 32, "fp32")
    mine = next(b for b in seen["budgets"] if b["variant"] == "Q-MQA")
    assert mine["bytes"] == edgeqkv.open(bundle).cache_bytes
    assert json.loads(cli("inspect", GOLDEN / "qk_v.pt", "--json").out)["variant"] == "Q=K-V"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompt", "hello"], "has no tokenizer, so it cannot take or write text; use --ids"),
        (["--ids", "1,x"], "--ids takes whole numbers separated by commas, found '1,x'"),
        (["--ids", ""], "--ids takes whole numbers"),
        (["--ids", "1,300"], "token id 300 is out of range: this model knows 0 to 299"),
        (["--ids", ",".join(["1"] * 33)], "33 tokens do not fit: the cache holds 32 positions"),
        ([], "give either --prompt TEXT or --ids"),
        (["--ids", "1", "--prompt", "a"], "give either --prompt TEXT or --ids"),
        (["--ids", "1", "--tokens", "0"], "--tokens must be at least 1"),
        (["--ids", "1", "--temperature", "-1"], "temperature must be 0"),
        (["--ids", "1", "--threads", "0"], "threads must be 1 to 256, found 0"),
        (
            ["--ids", "1", "--runtime", "executorch"],
            "nothing for the runtime 'executorch'; it was exported for: onnx (fused kernel), onnx (stock kernel)",
        ),
        (["--ids", "1", "--temperature", "1", "--seed", "-1"], "seed must be 0 or more"),
        (["--ids", "9" * 30], "token ids are whole numbers of 64 bits at most"),
    ],
)
def test_generate_with_bad_input(cli, bundle, arguments, reason):
    outcome = cli("generate", bundle, *arguments)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)


def test_an_empty_prompt_and_one_longer_than_the_cache(cli, text_bundle):
    assert "the prompt is empty" in one_sentence(cli("generate", text_bundle, "--prompt", ""))
    assert "49 tokens do not fit" in one_sentence(cli("generate", text_bundle, "--prompt", "x" * 49))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--capacity", "49"], "capacity 49 is outside 1..48"),
        (["--capacity", "0"], "capacity 0 is outside 1..48"),
        (["--weights", "int3"], "weights 'int3' is not possible; this version can do int8, int4, int4-all, fp32, fp16"),
        (["--cache", "int4"], "cache 'int4' is not possible; this version can do fp32, fp16, int8"),
        (["--target", "tflite"], "target 'tflite' is not possible; this version can do onnx"),
    ],
)
def test_export_with_bad_input(cli, tiny_model, tmp_path, arguments, reason):
    outcome = cli("export", tiny_model("Q-MQA"), "--out", tmp_path / "b", *arguments)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert not (tmp_path / "b").exists()


def test_new_writes_random_weights_that_say_so(cli, tmp_path):
    assert cli("new", "tale-4m", "--variant", "Q-GQA-2", "--out", tmp_path / "m").code == 0
    assert "The weights are random" in (tmp_path / "m/README.md").read_text()
    assert "unknown preset 'gpt5'" in one_sentence(cli("new", "gpt5", "--variant", "QKV", "--out", tmp_path / "n"))
    assert "unknown variant 'KV'" in one_sentence(cli("new", "tale-4m", "--variant", "KV", "--out", tmp_path / "n"))
    assert "not divisible by n_kv_head 3" in one_sentence(cli("new", "tale-4m", "--variant", "GQA-3", "--out", tmp_path / "n"))
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["new", "tale-4m", "--layers", 10**9], "tale-4m: n_layer is 1000000000, outside 1 to 4096"),
        (["new", "tale-4m", "--layers", 0], "tale-4m: n_layer is 0, outside 1 to 4096"),
        (["import", GOLDEN / "qkv.pt", "--token-count", 0], "qkv.pt: token_count is 0, outside 1 to 16777216"),
        (["import", GOLDEN / "qkv.pt", "--token-count", 321], "token_count 321 exceeds vocab_size 320"),
    ],
)
def test_numbers_out_of_bounds(cli, tmp_path, arguments, reason):
    outcome = cli(*arguments, "--out", tmp_path / "m")
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("onnxruntime", "onnx-runtime", ["generate", "BUNDLE", "--ids", "1"]),
        ("onnxruntime", "onnx-runtime", ["bench", "BUNDLE", "--no-baseline", "--depths", "4", "--rounds", "1", "--steps", "1"]),
        ("onnx_ir", "onnx", ["export", "MODEL", "--out", "OUT"]),
        ("torch", "torch", ["export", "MODEL", "--out", "OUT", "--cache", "int8"]),
        ("torch", "torch", ["verify", "BUNDLE", "--against", "MODEL"]),
        ("torch", "torch", ["import", GOLDEN / "qkv.pt", "--out", "OUT"]),
    ],
)
def test_a_missing_package_is_named_with_its_extra(cli, bundle, tiny_model, tmp_path, monkeypatch, package, extra, command):
    places = {"BUNDLE": bundle, "MODEL": tiny_model("Q-MQA"), "OUT": tmp_path / "out"}
    monkeypatch.setitem(sys.modules, package, None)
    if command[0] == "bench":  # another process, which is shown the same gap
        (tmp_path / "gap").mkdir()
        (tmp_path / "gap/onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "gap"))
    outcome = cli(*(places.get(part, part) for part in command))
    assert outcome.code == 3
    assert f"this needs the package {package!r}" in one_sentence(outcome)
    assert f'pip install "edgeqkv[{extra}]"' in outcome.err


def test_running_a_bundle_loads_no_torch(bundle):
    code = f"import sys, edgeqkv; edgeqkv.open({str(bundle)!r}).step(1); print('torch' in sys.modules, 'onnx' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"] * 2
    )


def test_json_everywhere(cli, text_bundle, tmp_path):
    made = json.loads(cli("new", "tale-4m", "--variant", "Q-MQA", "--out", tmp_path / "m", "--json").out)
    assert (made["attention"]["projections"], made["attention"]["n_kv_head"]) == ("Q-K=V", 1)
    imported = json.loads(cli("import", GOLDEN / "mqa.pt", "--out", tmp_path / "i", "--json").out)
    assert imported["attention"]["n_kv_head"] == 1
    written = json.loads(cli("generate", text_bundle, "--prompt", "ab", "--tokens", 3, "--json").out)
    assert len(written["ids"]) == 3
    assert isinstance(written["text"], str)


def test_a_fault_of_ours_is_no_traceback(cli, bundle, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("edgeqkv.open", broken)
    outcome = cli("generate", bundle, "--ids", "1")
    assert outcome.code == 70
    assert "a fault of ours, please report it: ZeroDivisionError" in one_sentence(outcome)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(36, "File name too long", "x" * 300), f"edgeqkv: {'x' * 200}: File name too long"),
        (OSError(28, "No space left on device"), "edgeqkv: No space left on device"),
        (OSError("4096 requested and 2944 written"), "edgeqkv: 4096 requested and 2944 written"),
        (MemoryError(), "edgeqkv: there is not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence_too(cli, monkeypatch, error, said):
    def refused():
        raise error

    monkeypatch.setattr("edgeqkv.cli.app", refused)
    outcome = cli("inspect", "x")
    assert (outcome.code, one_sentence(outcome)) == (2, said)


def test_a_prompt_that_is_no_text(cli, text_bundle):
    assert "the prompt is not UTF-8 text" in one_sentence(cli("generate", text_bundle, "--prompt", "\udcff"))


def test_import_and_new_replace_nothing(cli, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    for command in (["import", GOLDEN / "qkv.pt"], ["new", "tale-4m", "--variant", "QKV"]):
        outcome = cli(*command, "--out", tmp_path / "hf")
        assert outcome.code == 2
        assert "exists and holds config.json, so it is not replaced" in one_sentence(outcome)
    assert (tmp_path / "hf/config.json").read_text() == "{}"


def test_debug_shows_the_traceback(cli, tmp_path):
    with pytest.raises(edgeqkv.EdgeQKVError):
        cli("--debug", "generate", tmp_path, "--ids", "1")


def test_unknown_options_exit_with_2(cli, bundle):
    assert cli("generate", bundle, "--nonsense").code == 2
    assert cli("--version").out.strip() == f"edgeqkv {edgeqkv.__version__}"
