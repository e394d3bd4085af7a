"""edgeqkv generate and edgeqkv chat: text that stops, sessions that go on, conversations that are saved."""

import io
import json
import os

import pytest
from conftest import one_sentence, tiny_config, tiny_weights

import edgeqkv
from edgeqkv.generate_cli import until
from edgeqkv.model_folder import Model, write_model
from edgeqkv.text import Text

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def characters():
    """A tokenizer.json of 256 characters, a token each, so that a random model writes whole characters."""
    from tokenizers import Tokenizer, decoders, models

    alphabet = ["\n", *map(chr, [*range(32, 127), *range(0x400, 0x4A0)])]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, characters):
    """By name: "ids" without a tokenizer, "text" with one, "chat" with a template."""
    folder, out = tmp_path_factory.mktemp("text"), {}
    for name, tokenizer, text in (
        ("ids", None, Text()),
        ("text", characters, Text()),
        ("chat", characters, Text(chat_template=TEMPLATE)),
    ):
        config = tiny_config("Q-MQA", n_positions=256, token_count=256)
        weights = {n: w * (5 if n == "wte.weight" else 1) for n, w in tiny_weights(config).items()}  # a text of some variety
        write_model(folder / f"model-{name}", Model(config, weights, tokenizer, text, ""), "# tiny\n")
        out[name] = folder / name
        edgeqkv.export(folder / f"model-{name}", folder / name, cache="int8", prefill_chunk=16)
    return out


def ids_of(outcome):
    assert outcome.code == 0, outcome.err
    return [int(part) for part in outcome.out.strip().split(",")]


def seen(cli, bundle, *arguments):
    outcome = cli("generate", bundle, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


# A greedy text that does not go round in circles.
VARIED = ["--prompt", "ab", "--repetition-penalty", 3, "--tokens", 40]


def later_pair(text):
    """Two characters that stand there, and not at the beginning."""
    return next(text[i : i + 2] for i in range(4, 38) if text.index(text[i : i + 2]) >= 4)


# -- generate -----------------------------------------------------------------------------------------------------


def test_sampling_options_reach_the_sampler(cli, bundles):
    greedy = ids_of(cli("generate", bundles["ids"], "--ids", "1,2,3", "--tokens", 12))
    narrow = ids_of(
        cli("generate", bundles["ids"], "--ids", "1,2,3", "--tokens", 12, "--temperature", 5, "--top-p", 1e-6, "--seed", 3)
    )
    assert narrow == greedy
    wide = ids_of(cli("generate", bundles["ids"], "--ids", "1,2,3", "--tokens", 12, "--temperature", 5, "--seed", 3))
    assert wide != greedy
    fresh = ids_of(cli("generate", bundles["ids"], "--ids", "1,2,3", "--tokens", 12, "--repetition-penalty", 1e9))
    assert len(set(fresh)) == 12
    assert not set(fresh) & {1, 2, 3}


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("--top-p", 0, "top-p must lie between 0 and 1"), ("--repetition-penalty", 0, "the repetition penalty must be")],
)
def test_sampling_options_that_mean_nothing(cli, bundles, option, value, reason):
    outcome = cli("generate", bundles["ids"], "--ids", "1", option, value)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)


def test_it_ends_before_a_text(cli, bundles):
    whole = seen(cli, bundles["text"], *VARIED)["text"]
    stop = later_pair(whole)
    cut = seen(cli, bundles["text"], *VARIED, "--stop", "nowhere", "--stop", stop)
    assert 4 <= len(cut["text"]) < 40
    assert cut["text"] == whole[: whole.index(stop)]
    assert len(cut["ids"]) < 40
    printed = cli("generate", bundles["text"], *VARIED, "--stop", stop)
    assert printed.out == f"ab{cut['text']}\n"


def test_stop_is_for_text(cli, bundles):
    assert "--stop is for text" in one_sentence(cli("generate", bundles["ids"], "--ids", "1", "--stop", "x"))


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["ab", "cd"], [], "abcd"),
        (["ab", "cd"], ["bc"], "a"),  # across two pieces
        (["a", "b", "a", "b", "c"], ["abc"], "ab"),  # a beginning that is none
        (["ab"], ["abc"], "ab"),  # held back to the end
        (["abcd"], ["d", "bc"], "a"),  # the first to come
        (["a", "aa", "b"], ["aab"], "a"),
        (["x"], ["x"], ""),
        ([], ["x"], ""),
    ],
)
def test_text_up_to_a_stop(pieces, stops, text):
    assert "".join(until(pieces, stops)) == text


def test_no_more_than_a_beginning_of_a_stop_is_held_back():
    seen, source = [], iter(["one ", "two <", "end"])
    for piece in until(source, ["<end>"]):
        seen.append(piece)
        if len(seen) == 2:
            assert next(source) == "end"  # not asked for yet
    assert seen == ["one ", "two ", "<"]


# -- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [("--ids", "1,2,3"), ("--prompt", "ab")])
def test_two_runs_over_a_session_are_one_text(cli, bundles, tmp_path, prompt):
    """The second has no prompt: it goes on with what the first wrote last, which it has to hold, even where that was twice the
    same id."""
    bundle = bundles["ids" if prompt[0] == "--ids" else "text"]
    whole = seen(cli, bundle, *prompt, "--tokens", 30)["ids"]
    for first in (1, 4, 29):
        file = tmp_path / f"{first}.session"
        one = seen(cli, bundle, *prompt, "--tokens", first, "--session", file)["ids"]
        two = seen(cli, bundle, "--tokens", 30 - first, "--session", file)["ids"]
        assert [*one, *two] == whole


def test_an_id_twice_in_a_row_is_held_twice(cli, bundles, tmp_path, monkeypatch):
    """What was written last is fed by the length of the text, not by what stands at its end."""
    monkeypatch.setattr("edgeqkv.sampling.Sampler.start", lambda self: lambda logits, tokens: 7)
    assert seen(cli, bundles["ids"], "--ids", "1,2,3", "--tokens", 3, "--session", tmp_path / "s")["ids"] == [7, 7, 7]
    session = edgeqkv.open(bundles["ids"])
    session.restore(tmp_path / "s")
    assert session.tokens == (1, 2, 3, 7, 7, 7)


def test_a_session_goes_on_with_a_new_prompt(cli, bundles, tmp_path):
    file = tmp_path / "s"
    one = seen(cli, bundles["text"], "--prompt", "ab", "--tokens", 5, "--session", file)
    two = seen(cli, bundles["text"], "--prompt", "cd", "--tokens", 5, "--session", file)
    assert edgeqkv.tokenizer(bundles["text"]).decode(two["prompt_ids"]) == "cd"
    session = edgeqkv.open(bundles["text"])
    session.restore(file)
    assert list(session.tokens) == [*one["prompt_ids"], *one["ids"], *two["prompt_ids"], *two["ids"]]


def test_a_stopped_text_goes_on_too(cli, bundles, tmp_path):
    whole = seen(cli, bundles["text"], *VARIED)
    session = ["--session", tmp_path / "s"]
    one = seen(cli, bundles["text"], *VARIED, "--stop", later_pair(whole["text"]), *session)["ids"]
    two = seen(cli, bundles["text"], *VARIED[2:-1], 40 - len(one), *session)["ids"]
    assert [*one, *two] == whole["ids"]


def test_a_full_session_is_saved_and_not_gone_on_from(cli, bundles, tmp_path):
    first = cli("generate", bundles["ids"], "--ids", "1,2,3", "--session", tmp_path / "s")
    assert len(ids_of(first)) == 254
    assert "the cache is full: the session that is saved does not hold the last token" in first.err
    outcome = cli("generate", bundles["ids"], "--session", tmp_path / "s")
    assert outcome.code == 2
    assert "holds a full session, all of its 256 positions" in one_sentence(outcome)


def test_a_session_file_that_is_none(cli, bundles, tmp_path):
    (tmp_path / "s").write_text("hello")
    outcome = cli("generate", bundles["ids"], "--ids", "1", "--session", tmp_path / "s")
    assert outcome.code == 2
    assert "is not a session file" in one_sentence(outcome)
    assert (tmp_path / "s").read_text() == "hello"
    assert "give either --prompt TEXT or --ids" in one_sentence(cli("generate", bundles["ids"], "--session", tmp_path / "new"))


# -- chat ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(cli, monkeypatch):
    """Lines to ``edgeqkv chat``; what it said, and its notes."""

    def chat(bundle, *lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        outcome = cli("chat", bundle, "--tokens", 6, "--temperature", 0, *options)
        assert outcome.code == 0, outcome.err
        return outcome

    return chat


def conversation(bundle, *turns, system=None):
    """The answers of a session that prefills the whole rendered conversation each time."""
    from edgeqkv.chat import render

    tokenizer, session = edgeqkv.tokenizer(bundle), edgeqkv.open(bundle)
    messages, answers = [] if system is None else [{"role": "system", "content": system}], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = tokenizer.encode(render(TEMPLATE, messages, {})).ids
        session.reset()
        out = tokenizer.decode(list(session.generate(ids, limit=6)))
        answers.append(out)
        messages.append({"role": "assistant", "content": out})
    return answers


def test_a_conversation(talk, bundles):
    answers = conversation(bundles["chat"], "hello", "and you?")
    outcome = talk(bundles["chat"], "hello", "", "and you?")
    assert outcome.out == "".join(f"{answer}\n" for answer in answers)
    assert outcome.err == ""


def test_the_history_is_held_and_not_prefilled_again(talk, bundles, monkeypatch):
    from edgeqkv.runtimes.onnx.engine import OnnxEngine

    run, fed = OnnxEngine.run, []
    monkeypatch.setattr(
        OnnxEngine, "run", lambda self, ids, position: fed.append((position, len(ids))) or run(self, ids, position)
    )
    talk(bundles["chat"], "hello")
    first = len(fed)
    talk(bundles["chat"], "hello", "and you?")
    again = fed[2 * first :]
    assert again[0][0] > 0  # not from the beginning
    assert sum(count for _, count in again) < sum(count for _, count in fed[:first]) + len("and you?<user>\n<assistant>")


def test_a_system_message(talk, bundles):
    (answer,) = conversation(bundles["chat"], "hello", system="be brief")
    assert talk(bundles["chat"], "hello", options=["--system", "be brief"]).out == f"{answer}\n"


def test_reset_forgets(talk, bundles):
    first, _ = conversation(bundles["chat"], "hello", "hello")
    assert talk(bundles["chat"], "hello", "/reset", "hello").out == f"{first}\n{first}\n"


def test_a_saved_conversation_goes_on(talk, bundles, tmp_path):
    file = tmp_path / "talk"
    first, second = conversation(bundles["chat"], "hello", "and you?")
    assert talk(bundles["chat"], "hello", f"/save {file}", "/quit", "never read").out == f"{first}\n"
    assert talk(bundles["chat"], f"/load {file}", "and you?").out == f"{second}\n"
    messages = json.loads((tmp_path / "talk.messages.json").read_text())
    assert messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first}]
    assert {os.stat(file).st_mode & 0o777, os.stat(tmp_path / "talk.messages.json").st_mode & 0o777} == {0o600}


def test_what_is_wrong_is_said_and_the_conversation_goes_on(talk, bundles, tmp_path):
    first, second = conversation(bundles["chat"], "hello", "and you?")
    (tmp_path / "bad").write_text("x")
    (tmp_path / "bad.messages.json").write_text('[{"role": "user", "content": 1}]')
    (tmp_path / "other").write_text("x")
    (tmp_path / "other.messages.json").write_text('[{"role": "user", "content": "x"}]')
    lines = ["hello", "/nonsense", "/load", f"/load {tmp_path}/none", f"/load {tmp_path}/bad", f"/load {tmp_path}/other"]
    outcome = talk(bundles["chat"], *lines, "and you?")
    assert outcome.out == f"{first}\n{second}\n"
    notes = outcome.err.strip().splitlines()
    assert len(notes) == 5
    assert notes[0] == notes[1] == "edgeqkv: the commands are /save FILE, /load FILE, /reset and /quit"
    assert "none.messages.json does not exist" in notes[2]
    assert "bad.messages.json" in notes[3]
    assert "is not a session file" in notes[4]


def test_a_conversation_that_outgrows_the_cache(talk, bundles):
    outcome = talk(bundles["chat"], "x" * 300, "/reset", "hello")
    assert "/reset starts over" in outcome.err
    assert outcome.out == f"{conversation(bundles['chat'], 'hello')[0]}\n"


def test_a_bundle_without_a_template_says_so(talk, bundles):
    assert "this bundle has no chat template" in talk(bundles["text"], "hello").err


def test_a_bundle_without_a_tokenizer_cannot_chat(cli, bundles, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    outcome = cli("chat", bundles["ids"])
    assert outcome.code == 2
    assert "has no tokenizer" in one_sentence(outcome)
