"""Tokenizers: what ends a text, whether one belongs to a model, and characters that are spread over several ids."""

import json

import pytest
from conftest import GOLDEN, one_sentence
from tokenizers import AddedToken, Tokenizer

from edgeqkv.bundle import read_bundle
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import read_model
from edgeqkv.text import check_tokenizer, default_text, load_tokenizer, stream_text


def with_special(letters, *names, special=True):
    tokenizer = Tokenizer.from_str(letters)
    tokenizer.add_tokens([AddedToken(name, special=special) for name in names])
    return tokenizer


@pytest.mark.parametrize(
    ("names", "special", "ends"),
    [
        ((), True, ()),
        (("<|endoftext|>",), True, (256,)),
        (("<s>", "</s>"), True, (257,)),
        (("<|end_of_text|>", "<|endoftext|>"), True, (257, 256)),
        (("<eos>",), True, (256,)),
        (("<pad>", "<unk>"), True, ()),
        (("</s>",), False, ()),  # an ordinary word of that name ends nothing
    ],
)
def test_end_tokens_of_a_tokenizer_alone(letters, names, special, ends):
    assert default_text(with_special(letters, *names, special=special)).end_tokens == ends


def test_end_tokens_go_from_the_tokenizer_to_the_manifest_and_end_a_text(cli, tiny_model, letters, tmp_path, monkeypatch):
    folder = tiny_model("Q-MQA", with_special(letters, "</s>").to_str())
    assert read_model(folder).text.end_tokens == (256,)
    assert cli("export", folder, "--out", tmp_path / "b").code == 0
    assert read_bundle(tmp_path / "b").text.end_tokens == (256,)
    said = iter([70, 71, 256, 72])
    monkeypatch.setattr("edgeqkv.sampling.Sampler.start", lambda self: lambda logits, tokens: next(said))
    outcome = cli("generate", tmp_path / "b", "--prompt", "ab", "--json")
    assert json.loads(outcome.out)["ids"] == [70, 71]


def test_text_json_is_what_counts_where_there_is_one(tiny_model, letters):
    folder = tiny_model("Q-MQA", with_special(letters, "</s>").to_str())
    (folder / "text.json").write_text('{"end_tokens": [7, 9], "chat_template": "x", "special_tokens": {"bos_token": "<s>"}}')
    text = read_model(folder).text
    assert (text.end_tokens, text.chat_template, text.special_tokens) == ((7, 9), "x", {"bos_token": "<s>"})


def test_a_tokenizer_that_fits_and_one_that_does_not(letters):
    tokenizer = with_special(letters, "</s>")
    check_tokenizer(tokenizer, 257, "here")
    with pytest.raises(EdgeQKVError, match="here has token ids up to 256, the model knows 0 to 255: it is another model's"):
        check_tokenizer(tokenizer, 256, "here")


def test_import_with_a_tokenizer(cli, letters, tmp_path):
    """It says how many ids may be sampled: 256 of the golden model's 320 rows."""
    (tmp_path / "tokenizer.json").write_text(letters)
    arguments = ["import", GOLDEN / "qkv.pt", "--tokenizer", tmp_path / "tokenizer.json", "--out"]
    assert cli(*arguments, tmp_path / "m").code == 0
    model = read_model(tmp_path / "m")
    assert (model.config.token_count, model.config.vocab_size, model.tokenizer) == (256, 320, letters)
    many = with_special(letters, *(f"<{i}>" for i in range(65)))
    (tmp_path / "tokenizer.json").write_text(many.to_str())
    outcome = cli(*arguments, tmp_path / "n")
    assert outcome.code == 2
    assert "has token ids up to 320, the model knows 0 to 319" in one_sentence(outcome)
    assert not (tmp_path / "n").exists()


def test_import_with_fewer_tokens_than_the_tokenizer_makes(cli, letters, tmp_path):
    """What import wrote, export must be able to read."""
    (tmp_path / "tokenizer.json").write_text(letters)
    arguments = ["import", GOLDEN / "qkv.pt", "--tokenizer", tmp_path / "tokenizer.json", "--token-count", 200]
    outcome = cli(*arguments, "--out", tmp_path / "m")
    assert outcome.code == 2
    assert "has token ids up to 255, the model knows 0 to 199" in one_sentence(outcome)


def test_characters_come_out_whole(letters):
    """A token is a byte: the euro sign takes three. What is unfinished at the end is not written."""
    tokenizer = load_tokenizer(letters, "here")
    ids = tokenizer.encode("a€é").ids
    assert len(ids) == 6
    assert list(stream_text(tokenizer, [], ids)) == ["a", "€", "é"]
    assert list(stream_text(tokenizer, [], ids[:3])) == ["a"]
    for begun in (2, 3, 5):  # by the prompt
        assert "".join(stream_text(tokenizer, ids[:begun], ids[begun:])) == ("€é" if begun < 4 else "é")
    assert list(stream_text(tokenizer, tokenizer.encode("aé").ids, ids[4:])) == ["é"]


def test_special_tokens_are_not_written(letters):
    tokenizer = with_special(letters, "</s>")
    assert "".join(stream_text(tokenizer, [], [*tokenizer.encode("a").ids, 256, *tokenizer.encode("b").ids])) == "ab"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": {"type": "Nope"}}'])
def test_what_is_no_tokenizer(text):
    with pytest.raises(EdgeQKVError, match="here is not a tokenizer.json: "):
        load_tokenizer(text, "here")
