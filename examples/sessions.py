"""Sessions from Python: python examples/sessions.py BUNDLE "A prompt", with a bundle that has a tokenizer."""

import sys
import tempfile
from pathlib import Path

import edgeqkv
from edgeqkv.sampling import Sampler

bundle, prompt = sys.argv[1], sys.argv[2]
tokenizer = edgeqkv.tokenizer(bundle)
ids = tokenizer.encode(prompt).ids

with edgeqkv.open(bundle) as session, tempfile.TemporaryDirectory() as folder:
    # The prompt is run once; every continuation begins from its rows.
    session.prefill(ids)
    saved = Path(folder) / "prompt.session"
    session.save(saved)
    print(f"{session.depth} of {session.capacity} positions, {saved.stat().st_size:,} bytes saved")

    # Two continuations of one prompt: a fork is a session of its own over the same weights.
    with session.fork() as other:
        for name, one, seed in (("one", session, 1), ("another", other, 2)):
            written = list(one.generate(sampler=Sampler(temperature=0.8, top_p=0.9, seed=seed), limit=20))
            print(f"{name}: {tokenizer.decode(written)}")

    # Back to the prompt, exactly: greedy text from the file and from a rewind is the same.
    session.restore(saved)
    first = list(session.generate(limit=10))
    session.rewind(len(ids) - 1)
    session.step(ids[-1])
    assert list(session.generate(limit=10)) == first

    # A longer prompt costs what is new in it.
    session.feed([*ids, *first])
    print(f"held: {tokenizer.decode(list(session.tokens))}")
