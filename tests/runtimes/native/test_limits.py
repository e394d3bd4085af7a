"""Python's reader and the library's have the same limits, at the last number that passes and the next, and the same words."""

import re
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

import edgeqkv
from edgeqkv import limits
from edgeqkv.bundle import read_bundle, write_manifest
from edgeqkv.cache import CacheLayout
from edgeqkv.config import with_variant
from edgeqkv.manifest import EntryPoint, Port, cache_entry
from edgeqkv.parameters import parameter_count

ROOT = Path(__file__).parents[3]


def test_each_is_written_down_with_the_same_number():
    text = (ROOT / "runtimes/native/src/limits.h").read_text()
    found = re.findall(r"^constexpr \w+ kMost(\w+) = (?:\w+\{)?(\d+)\}?(?: << (\d+))?;", text, re.MULTILINE)
    native = {"_".join(re.findall("[A-Z][a-z]+", name)).upper(): int(n) << int(shift or 0) for name, n, shift in found}
    assert native == {name: value for name, value in vars(limits).items() if name.isupper()}
    assert len(native) == text.count("constexpr") == 8


@pytest.fixture
def claim(golden_bundle, tmp_path):
    """A bundle whose manifest agrees with itself about a model of another size: (capacity, **changes of the configuration) ->
    folder. Its program is the golden one: opening does not compare them."""
    shutil.copytree(golden_bundle("q_mqa", "fp32"), tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle")
    (artifact,) = (each for each in manifest.artifacts if each.kernel == "fused")

    def write(capacity=None, head_dim=8, **changes):
        config = with_variant(replace(manifest.model.config, **changes), "Q-MQA")
        config = replace(config, attention=replace(config.attention, head_dim=head_dim))
        layout = CacheLayout(config.n_layer, config.row, capacity or manifest.capacity, "fp32", "none")
        (entry,) = artifact.entry_points
        ports = {buffer.name: Port(buffer.name, buffer.dtype, buffer.shape) for buffer in layout.buffers}
        new = EntryPoint(
            name=entry.name,
            inputs=(*entry.inputs[:2], *ports.values()),
            outputs=(Port("logits", "float32", (config.vocab_size,)), *(replace(p, name=f"{n}.out") for n, p in ports.items())),
            aliases={f"{name}.out": name for name in ports},
            states={},
            arena_bytes=None,
        )
        model = replace(manifest.model, config=config, variant=config.variant, parameters=parameter_count(config))
        changed = replace(artifact, cache=cache_entry(layout, {}), entry_points=(new,))
        write_manifest(
            tmp_path / "bundle", replace(manifest, model=model, capacity=layout.capacity, artifacts=(changed,), parity=())
        )
        return tmp_path / "bundle"

    return write


WIDE = {"n_positions": limits.POSITIONS, "capacity": limits.POSITIONS, "head_dim": 256}  # 2^34 bytes a layer


@pytest.mark.parametrize(
    ("last", "first_refused", "sentence"),
    [
        ({"n_layer": limits.LAYERS}, {"n_layer": limits.LAYERS + 1}, "n_layer is 4097, outside 1 to 4096"),
        (
            {"n_positions": limits.POSITIONS},
            {"n_positions": limits.POSITIONS + 1},
            "n_positions is 16777217, outside 1 to 16777216",
        ),
        ({"n_positions": 99, "capacity": 99}, {"n_positions": 99, "capacity": 100}, "capacity is 100, outside 1 to 99"),
        ({"vocab_size": limits.IDS}, {"vocab_size": limits.IDS + 1}, "vocab_size is 16777217, outside 1 to 16777216"),
        (
            {"vocab_size": limits.IDS, "token_count": limits.IDS},
            {"vocab_size": limits.IDS, "token_count": 0},
            "token_count is 0, outside 1 to 16777216",
        ),
        ({**WIDE, "n_layer": 64}, {**WIDE, "n_layer": 65}, "the cache has more than 1099511627776 bytes"),
    ],
    ids=["layers", "positions", "capacity", "ids", "tokens", "cache"],
)
def test_both_readers_refuse_the_same(last, first_refused, sentence, claim, open_native):
    folder = claim(**last)
    read_bundle(folder)
    open_native(folder, "onnx")
    folder = claim(**first_refused)
    for reader in (read_bundle, open_native):
        with pytest.raises(edgeqkv.EdgeQKVError, match=re.escape(sentence)):
            reader(folder)


def test_a_manifest_that_is_too_long(golden_bundle, tmp_path, open_native):
    shutil.copytree(golden_bundle(), tmp_path / "bundle")
    path = tmp_path / "bundle/edgeqkv.json"
    path.write_text(path.read_text().ljust(limits.JSON_BYTES))
    read_bundle(tmp_path / "bundle")
    open_native(tmp_path / "bundle", "onnx")
    path.write_text(path.read_text() + " ")
    for reader in (read_bundle, open_native):
        with pytest.raises(edgeqkv.EdgeQKVError, match=r"edgeqkv\.json has 67108865 bytes, and at most 67108864 can be right"):
            reader(tmp_path / "bundle")


def test_threads(golden_bundle, open_native):
    for threads in (0, limits.THREADS + 1):
        for opened in (lambda n: edgeqkv.open(golden_bundle(), threads=n), lambda n: open_native(golden_bundle(), threads=n)):
            with pytest.raises(edgeqkv.EdgeQKVError, match=f"threads must be 1 to 256, found {threads}"):
                opened(threads)
    edgeqkv.open(golden_bundle(), threads=limits.THREADS)
    open_native(golden_bundle(), threads=limits.THREADS)


def test_threads_in_c(golden_bundle, open_native, monkeypatch):
    """Where Python does not ask first."""
    monkeypatch.setattr("edgeqkv.runtimes.native.engine.check_threads", lambda threads: None)
    for threads in (-1, limits.THREADS + 1):
        with pytest.raises(edgeqkv.EdgeQKVError, match=rf"threads must be 0 \(the runtime's choice\) to 256, found {threads}"):
            open_native(golden_bundle(), threads=threads)
