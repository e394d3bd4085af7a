"""python tests/runtimes/android/prepare.py OUT: what the tests of the Android library on the JVM read.

The bundles that they open, the table of cases, and what Python makes of the same texts and prompts.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import tokenizers

import edgeqkv
from edgeqkv.sampling import Sampler

ROOT = Path(__file__).parents[3]
MODELS = "qkv", "q-kv", "q-mqa"
SEED = 20261124
FUZZED_TEXTS = 1500
PROMPT = "Once upon a time there was a little princess"
END = " little"
SAMPLING = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 2**64 - 5}
TEXTS = [
    "",
    " ",
    "Once upon a time",
    "It's 12 345,67 € (or ½).\r\n\r\n\tint main() { return 0; }",
    "zero\0inside",
    "Größe, e\u0301, Привет, שלום, १२३, สวัสดี, 你好世界, 안녕하세요",
    "👍🏽👩‍👧 \U0010ffff \ufffd",
    "<|endoftext|>Once<|endoftext|>",
    "a" * 5000,
]


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for model in MODELS:
        edgeqkv.export(ROOT / "models" / model, out / model)
    # Small, with an int8 cache and prompts of several chunks.
    edgeqkv.export(ROOT / "tests/golden/q_mqa.pt", out / "small", cache="int8", prefill_chunk=4)
    # Ends its text at a word: greedily, the model never comes to an end within its 512 positions.
    ending = out / "ending-model"
    shutil.copytree(ROOT / "models/q-mqa", ending)
    ends = tokenizers.Tokenizer.from_file(str(ending / "tokenizer.json")).encode(END).ids
    write(ending / "text.json", {"end_tokens": ends, "chat_template": None, "special_tokens": {}})
    edgeqkv.export(ending, out / "ending")
    shutil.copy(ROOT / "tests/session_cases.json", out)
    write(out / "tokenizer.json", {model: tokenized(ROOT / "models" / model / "tokenizer.json") for model in MODELS})
    write(out / "generated.json", [generated(out / m, m, k) for m in MODELS for k in ("fused", "stock")])


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))  # ASCII, so that no surrogate is lost


def tokenized(path: Path) -> list[dict[str, object]]:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    dice = random.Random(SEED)
    out = []
    for text in [*TEXTS, *(fuzzed(dice) for _ in range(FUZZED_TEXTS))]:
        ids = tokenizer.encode(text).ids
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        out.append({"text": text, "ids": ids, "plain": plain, "decoded": tokenizer.decode(ids)})
    for _ in range(FUZZED_TEXTS // 10):  # bytes that are no text
        ids = dice.choices(range(tokenizer.get_vocab_size()), k=dice.randrange(1, 12))
        out.append({"decode": ids, "decoded": tokenizer.decode(ids)})
    return out


def fuzzed(dice: random.Random) -> str:
    """Words, spaces, digits, signs, and any character there is."""
    pieces = [
        "the",
        " little",
        " it's",
        "12",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "…",
        "<|endoftext|>",
        "<|endof",
        "é",
        "e\u0301",
    ]
    return "".join(dice.choice(pieces) if dice.random() < 0.6 else character(dice) for _ in range(dice.randrange(1, 24)))


def character(dice: random.Random) -> str:
    point = dice.choice([dice.randrange(0x80), dice.randrange(0x3000), dice.randrange(0x110000)])
    return "?" if 0xD800 <= point < 0xE000 else chr(point)


def generated(folder: Path, model: str, kernel: str) -> dict[str, object]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = edgeqkv.open(folder, runtime="onnx", kernel=kernel, threads=1)
    prompt = tokenizer.encode(PROMPT).ids
    logits = session.prefill(prompt)
    out = {"bundle": model, "kernel": kernel, "text": PROMPT, "prompt": prompt, "logits": [float(x) for x in logits]}
    for name, sampler in (("greedy", None), ("sampled", Sampler(**SAMPLING))):
        session.reset()
        ids = [int(token) for token in session.generate(prompt, sampler, 60)]
        out[name] = {"ids": ids, "text": tokenizer.decode(ids)}
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
