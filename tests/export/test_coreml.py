"""The Core ML package as it lies on disk: the golden logits through both executors, and the shape that makes it K-only."""

import re
from collections import Counter
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from coreml_models import model, variant, weights
from msgspec.structs import replace

import edgeqkv
from edgeqkv.cache import cache_layout
from edgeqkv.config import MLP
from edgeqkv.eager import EagerModel
from edgeqkv.model_folder import write_model
from edgeqkv.presets import preset
from edgeqkv.runtimes import open_artifact
from edgeqkv.runtimes.coreml.package import MANIFEST_FILE, PACKAGE, SPEC_FILE, WEIGHT_FILE, read_package, require_coremltools
from edgeqkv.sources import load_model
from edgeqkv.weights import RowInt8

ct = require_coremltools()

from edgeqkv.export.coreml.limits import check_sizes, head_rows  # noqa: E402 - coremltools logs less
from edgeqkv.export.coreml.program import build_program, write_package  # noqa: E402
from edgeqkv.export.coreml.stored import weight_formats  # noqa: E402
from edgeqkv.runtimes.coreml.interpreter import CONSTANTS, OPERATIONS, STATE_OPERATIONS  # noqa: E402

VARIANTS = ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"]
CHUNK = 8
README = Path(__file__).parents[2] / "runtimes/coreml/README.md"

pytestmark = pytest.mark.filterwarnings("ignore:Core ML needs macOS")


@pytest.fixture
def folder(tmp_path):
    """Write a small random model folder for a variant; returns its path."""

    def write(name):
        write_model(tmp_path / f"model-{name}", model(variant(name)), "# small\n")
        return tmp_path / f"model-{name}"

    return write


def exported(golden, tmp_path, **options):
    edgeqkv.export(golden.checkpoint, tmp_path / "bundle", targets=["coreml"], prefill_chunk=CHUNK, **options)
    return edgeqkv.open(tmp_path / "bundle")


def package(config, folder, scheme="int8", head_parts=None, capacity=32):
    layout = cache_layout(config, capacity, "fp16")
    program = build_program(config, weights(config), layout, weight_formats(scheme), CHUNK, head_parts)
    write_package(program, folder / "model.mlpackage", "test")
    return folder / "model.mlpackage"


def test_golden_logits_and_greedy_text_in_fp16(golden, tmp_path):
    session = exported(golden, tmp_path, weights="fp16")
    assert np.abs(np.stack([session.step(token) for token in golden.ids]) - golden.logits).max() <= 2e-2
    # Along the golden continuation the same token is best wherever the best two differ by more than the error allowed.
    source = load_model(golden.checkpoint)
    reference = np.sort(
        EagerModel(source.config, source.weights).forward(golden.ids + golden.greedy[:-1])[len(golden.ids) - 1 :]
    )
    session.reset()
    chosen = [int(session.prefill(golden.ids).argmax()), *(int(session.step(token).argmax()) for token in golden.greedy[:-1])]
    clear = reference[:, -1] - reference[:, -2] > 2e-2
    assert clear.sum() >= len(golden.greedy) // 2
    assert np.array(chosen)[clear].tolist() == np.array(golden.greedy)[clear].tolist()


@pytest.mark.parametrize("prompt", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_prefill_across_chunks_then_decode_up_to_capacity(golden, prompt, tmp_path):
    session = exported(golden, tmp_path, weights="fp16", capacity=32)
    source = load_model(golden.checkpoint)
    ids = (golden.ids + golden.greedy)[:32]
    reference = EagerModel(source.config, source.weights).forward(ids)
    logits = [session.prefill(ids[:prompt]), *(session.step(token) for token in ids[prompt:])]
    assert np.abs(np.stack(logits) - reference[prompt - 1 :]).max() <= 2e-2
    with pytest.raises(edgeqkv.CacheFull):
        session.step(1)


def test_apples_value_inference_agrees(golden, tmp_path):
    first = exported(golden, tmp_path, weights="fp16")
    second = open_artifact(tmp_path / "bundle", first.manifest, first.artifact, executor="value_inference")
    ids = golden.ids[: CHUNK + 3]
    for session in (first, second):
        logits = [session.prefill(ids[:CHUNK]), *(session.step(token) for token in ids[CHUNK:])]
        assert np.abs(np.stack(logits) - golden.logits[CHUNK - 1 : CHUNK + 3]).max() <= 2e-2


def test_int8_weights_stay_close(golden, tmp_path):
    """Random weights are the hardest case; the bound is a tenth of the spread of the logits, real models do far better."""
    session = exported(golden, tmp_path)
    error = np.stack([session.step(token) for token in golden.ids]) - golden.logits
    assert 0.002 < np.sqrt(np.mean(error**2)) <= 0.1 * golden.logits.std()


# -- the saved program --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_states_are_the_cache(name, tmp_path):
    config = variant(name)
    spec = ct.utils.load_spec(str(package(config, tmp_path)))
    attention = config.attention
    tensors = ["k"] if attention.v_is_k else ["k", "v"]
    expected = {f"cache_{layer}_{t}": [1, attention.n_kv_head, 32, 32] for layer in range(config.n_layer) for t in tensors}
    described = {function.name: function for function in spec.description.functions}
    assert described.keys() == {"prefill", "decode"}
    for entry, function in described.items():
        states = {state.name: state.type.stateType.arrayType for state in function.state}
        assert {state: list(array.shape) for state, array in states.items()} == expected
        assert {array.dataType for array in states.values()} == {ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16}
        shapes = {port.name: list(port.type.multiArrayType.shape) for port in function.input}
        assert shapes == {"ids": [1, CHUNK if entry == "prefill" else 1], "position": [1]}
        assert [port.name for port in function.output] == ["logits"]
    assert spec.specificationVersion == ct.target.iOS18.value


@pytest.mark.parametrize("name", VARIANTS)
def test_each_state_is_written_once_and_read_for_key_and_value(name, tmp_path):
    config = variant(name)
    for function in read_package(package(config, tmp_path)).values():
        touched = {state: [] for state in function.states}
        for op in function.operations:
            if op.kind in STATE_OPERATIONS:
                touched[op.inputs["input"][0]].append((op.kind, op.outputs[0][0] if op.outputs else None))
        for uses in touched.values():
            assert [kind for kind, _ in uses] == ["read_state", "write_state", "read_state"]
        after = {state: uses[2][1] for state, uses in touched.items()}
        cached = [op.inputs["y"][0] for op in function.operations if op.kind == "matmul"]
        expected = []
        for layer in range(config.n_layer):
            key = after[f"cache_{layer}_k"]
            expected += [key, key if config.attention.v_is_k else after[f"cache_{layer}_v"]]
        assert cached == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_operations_are_those_that_the_interpreter_and_the_readme_name(name, tmp_path):
    named = set(re.findall(r"`([a-z_]+)`", README.read_text()))
    for parts in (None, 3):
        for function in read_package(package(variant(name), tmp_path / str(parts), head_parts=parts)).values():
            kinds = {op.kind for op in function.operations}
            assert kinds <= OPERATIONS.keys() | set(STATE_OPERATIONS) | set(CONSTANTS)
            assert kinds <= named
            assert "tile" not in kinds


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
@pytest.mark.parametrize("parts", [None, 3])
def test_one_blob_for_each_tensor_across_functions(scheme, parts, tmp_path):
    config = variant("Q-GQA-2")
    path = package(config, tmp_path, scheme, parts)
    offsets, sizes = {}, {}
    for function, program in read_package(path).items():
        for op in program.operations:
            for parameter, values in op.inputs.items():
                for value in values:
                    if not isinstance(value, str) and value.offset is not None:
                        name = f"{op.outputs[0][0]}.{parameter}"
                        name = name if value.value.ndim == 2 or not re.search(r"_\d+_y", name) else f"{function}.{name}"
                        assert offsets.setdefault(name, value.offset) == value.offset, name
                        sizes[value.offset] = value.value.nbytes
    assert len(set(offsets.values())) == len(offsets)
    assert (path / WEIGHT_FILE).stat().st_size <= 64 + sum(size + 2 * 64 for size in sizes.values())
    # Every matrix once, in the precision asked for, and little besides.
    matrices = sum(np.prod(w.shape) for n, w in weights(config).items() if w.ndim == 2 and not n.startswith("wpe"))
    expected = Counter({"matrices": matrices * (1 if scheme == "int8" else 2)})
    assert expected["matrices"] < (path / WEIGHT_FILE).stat().st_size < expected["matrices"] * 1.25 + 40_000


def test_embedding_and_head_are_one_tensor(tmp_path):
    for function in read_package(package(variant("Q-MQA"), tmp_path)).values():
        users = Counter(op.kind for op in function.operations for parts in op.inputs.values() if "wte_weight" in parts)
        assert users == {"gather": 1, "linear": 1}


@pytest.mark.parametrize(("parts", "rows"), [(1, [320]), (3, [107, 107, 106]), (16, [20] * 16)])
def test_a_head_in_parts_is_the_same_function(parts, rows, folder, tmp_path):
    """With 16 parts of 20 rows the last one is padding alone; ids come from every part."""
    source = folder("Q-K=V")
    ids = np.random.default_rng(0).permutation(300)[:24].tolist()
    sessions = {}
    for name, count in (("whole", 1), ("parts", parts)):
        edgeqkv.export(source, tmp_path / name, targets=["coreml"], weights="fp16", prefill_chunk=CHUNK, head_parts=count)
        sessions[name] = edgeqkv.open(tmp_path / name)
    tables = [
        op
        for op in read_package(tmp_path / "parts" / PACKAGE)["decode"].operations
        if op.kind == "const" and op.outputs[0][0].startswith("wte_weight")
    ]
    assert [op.inputs["val"][0].value.shape[0] for op in tables] == rows
    for start in range(0, 24, CHUNK):
        whole, split = (session.prefill(ids[start : start + CHUNK]) for session in sessions.values())
        np.testing.assert_allclose(split[:300], whole[:300], atol=4e-3)
    np.testing.assert_allclose(sessions["parts"].step(299)[:300], sessions["whole"].step(299)[:300], atol=4e-3)
    assert np.isneginf(split[300:]).all()
    assert split.shape == (320,)


def test_the_default_head_keeps_to_what_the_neural_engine_takes():
    assert head_rows(50304, None) == 12576
    assert head_rows(16384, None) == 16384
    assert head_rows(50304, 1) == 50304


@pytest.mark.parametrize("scale_dtype", [np.float16, np.float32])
def test_int8_rows_are_exact_to_half_a_step(scale_dtype):
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32) * np.logspace(-6, 2, 64)[:, None]
    weight[5] = 0
    values, scales = RowInt8(np.dtype(scale_dtype).name).quantize(weight)
    assert (values.dtype, scales.dtype) == (np.int8, scale_dtype)
    step = scales.astype(np.float64)
    error = np.abs(values * step - weight)
    clipped = np.abs(weight) > 127.5 * step  # a subnormal fp16 scale rounds, and then the largest value is beyond 127 steps
    assert (error[~clipped] <= 0.5001 * np.broadcast_to(step, weight.shape)[~clipped]).all()
    normal = step[:, 0] > 6.2e-5
    assert normal.sum() > 20
    assert not clipped[normal].any()


# -- the files ----------------------------------------------------------------------------------------------------


def test_the_same_export_gives_the_same_bytes(folder, tmp_path):
    source = folder("GQA-2")
    edgeqkv.export(source, tmp_path / "one", targets=["coreml"])
    config = variant("QKV")
    broken = weights(config) | {"h.1.ln_1.weight": np.full(128, 1e5, np.float32)}
    with pytest.raises(edgeqkv.EdgeQKVError):  # an export that fails between leaves no trace in the names
        build_program(config, broken, cache_layout(config, 32, "fp16"), weight_formats("fp16"), CHUNK, None)
    edgeqkv.export(source, tmp_path / "two", targets=["coreml"])
    for name in (MANIFEST_FILE, SPEC_FILE, WEIGHT_FILE):
        assert (tmp_path / "one" / PACKAGE / name).read_bytes() == (tmp_path / "two" / PACKAGE / name).read_bytes()


def test_coremltools_opens_the_package(tmp_path):
    """Apple's own reader of packages, which checks Manifest.json."""
    model = ct.models.MLModel(str(package(variant("Q-MQA"), tmp_path)), skip_model_load=True)
    assert model.get_spec().description.defaultFunctionName == "decode"
    assert Path(model.weights_dir).samefile(tmp_path / "model.mlpackage/Data/com.apple.CoreML/weights")


def test_one_bundle_for_both_targets(folder, tmp_path):
    manifest = edgeqkv.export(folder("Q-K=V"), tmp_path / "b", targets=["onnx", "coreml"])
    assert [a.name for a in manifest.artifacts] == ["onnx fused", "onnx stock", "coreml stock"]
    assert [a.cache.dtype for a in manifest.artifacts] == ["fp32", "fp32", "fp16"]
    formats = [set(a.weights.formats.values()) for a in manifest.artifacts]
    assert formats == [{"int8 block 128", "fp32"}, {"int8 block 128", "fp32"}, {"int8 row", "fp16"}]
    assert [a.prefill_chunk for a in manifest.artifacts] == [64, 64, 32]
    last = [edgeqkv.open(tmp_path / "b", runtime=runtime).prefill(range(40)) for runtime in ("onnx", "coreml")]
    assert np.abs(last[0][:300] - last[1][:300]).max() < 0.1


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"capacity": 48}, "capacity 48 is not a multiple of 32, which Core ML states need; use --capacity 32"),
        ({"capacity": 16}, "capacity 16 is not a multiple of 32, which Core ML states need; use --capacity 32"),
        ({"capacity": 96}, "capacity 96 is outside 1..64"),
        ({"prefill_chunk": 65}, "prefill chunk 65 is outside 2..64"),
        ({"prefill_chunk": 1}, "prefill chunk 1 is outside 2..64"),
        ({"head_parts": 0}, "head parts 0 is outside 1..320"),
        ({"cache": "int8"}, "cache 'int8' is not possible for coreml: Core ML holds states in fp16 only; leave --cache out"),
        ({"cache": "fp32", "targets": ["onnx", "coreml"]}, "cache 'fp32' is not possible for coreml"),
        ({"weights": "fp32"}, "weights 'fp32' are not possible for coreml, which can do int8, int4, int4-all, fp16"),
        (
            {"weights": "fp16", "targets": ["onnx"]},
            "weights 'fp16' are not possible for onnx, which can do int8, int4, int4-all, fp32",
        ),
        ({"head_parts": 2, "targets": ["onnx"]}, "--head-parts is for the target coreml"),
    ],
)
def test_what_cannot_work_is_refused(options, reason, folder, tmp_path):
    source = folder("Q-K=V")
    with pytest.raises(edgeqkv.EdgeQKVError, match=re.escape(reason)):
        edgeqkv.export(source, tmp_path / "bundle", **{"targets": ["coreml"]} | options)
    assert not (tmp_path / "bundle").exists()


def test_sizes_that_a_device_does_not_take(tmp_path):
    narrow = variant("Q-MQA")
    narrow = replace(narrow, attention=replace(narrow.attention, head_dim=16))
    write_model(tmp_path / "m", model(narrow), "# m\n")
    reason = r"this Q-MQA model caches \(k\) have 16 channels, which is not a multiple of 32, .*; use --target onnx"
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.export(tmp_path / "m", tmp_path / "bundle", targets=["coreml"], capacity=32)
    with pytest.raises(edgeqkv.EdgeQKVError, match="mlp.width 16416 is beyond 16384"):
        check_sizes(variant("QKV", mlp=MLP(kind="gelu", width=16416, bias=True)), 32, CHUNK, None)
    with pytest.raises(edgeqkv.EdgeQKVError, match="capacity 16416 is beyond 16384"):
        check_sizes(variant("QKV", n_positions=20000), 16416, CHUNK, None)
    for name in VARIANTS:
        check_sizes(preset("paper-300m", name), 2048, 32, None)


def test_weights_beyond_fp16(tmp_path):
    config = variant("Q-K=V")
    tensors = weights(config)
    tensors["h.1.mlp.fc.weight"][3, 5] = 7e4
    write_model(tmp_path / "m", changed(model(config), weights=tensors), "# m\n")
    for scheme in ("fp16", "int8"):
        with pytest.raises(edgeqkv.EdgeQKVError, match=r"h\.1\.mlp\.fc\.weight holds values beyond fp16's largest, 65504"):
            edgeqkv.export(tmp_path / "m", tmp_path / "b", targets=["coreml"], weights=scheme)
    assert not (tmp_path / "b").exists()
