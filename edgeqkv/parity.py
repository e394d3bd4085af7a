"""Does the export compute the same function? Logits, greedy text, KL and perplexity against the eager model, on real text."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgeqkv.bundle import read_bundle, record_parity
from edgeqkv.config import LatentAttention, baseline
from edgeqkv.corpus import token_windows
from edgeqkv.errors import CheckFailed, EdgeQKVError, MissingPackage, require
from edgeqkv.manifest import Artifact, Executor, Manifest, ParityRecord
from edgeqkv.model_folder import Model, expanded
from edgeqkv.runtimes import open_artifact
from edgeqkv.session import Session
from edgeqkv.sources import load_model
from edgeqkv.targets import target_of, targets
from edgeqkv.text import TOKENIZER
from edgeqkv.text_file import read_text

if TYPE_CHECKING:
    from edgeqkv.eager import EagerModel

GREEDY_TOKENS = 128
SECOND_OPINION_STEPS = 8  # of value_inference, which takes a third of a second a token and more, after a chunk and from nothing


@dataclass(frozen=True)
class _Run:
    """One way of executing an artifact, and what it is fed: token windows, each with how much of it is prefilled at once."""

    executor: Executor
    session: Session
    windows: list[tuple[list[int], int]]
    greedy_tokens: int
    limits: dict[str, float]


@dataclass(frozen=True)
class Parity:
    """One artifact's result: ``record`` goes into the manifest, ``failures`` says in words what was exceeded."""

    record: ParityRecord
    failures: tuple[str, ...]


def verify(bundle: Path, against: Path, text: Path | None = None, tokens: int = 4096) -> list[Parity]:
    """:func:`compare`, and put the results into the bundle's manifest. What cannot run here is a warning."""
    results = compare(bundle, against, text, tokens, note=lambda text: warnings.warn(text, RuntimeWarning, stacklevel=4))
    for result in results:
        record_parity(bundle, result.record)
    return results


def compare(
    bundle: Path,
    against: Path,
    text: Path | None = None,
    tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Parity]:
    """Compare every artifact of a bundle that can run here with the model folder or checkpoint ``against``; ``note`` is told of
    the others.

    Up to ``tokens`` tokens of ``text`` (by default a sample that ships with the package, from books that the models here never
    saw) are cut into windows of the bundle's capacity. The first window is fed token by token from an empty cache; each
    other one is prefilled to a quarter and then stepped, so that chunked prefill is compared as well. A Core ML artifact has
    two results: Core ML itself on macOS, elsewhere our interpreter, and then Apple's value_inference over a few tokens.
    """
    require("torch", "torch")
    from edgeqkv.eager import EagerModel

    manifest = read_bundle(bundle)
    model = load_model(against)
    if isinstance(model.config.attention, LatentAttention) and manifest.model.config == baseline(model.config):
        model = expanded(model)
    if model.config != manifest.model.config:
        raise EdgeQKVError(
            f"{bundle} holds a {manifest.model.variant} model and {against} a {model.config.variant} one of another "
            "configuration; verify against the model it was exported from"
        )
    if model.tokenizer is None and manifest.text.tokenizer is not None:
        model = replace(model, tokenizer=read_text(bundle / TOKENIZER))
    if manifest.capacity < 2:
        raise EdgeQKVError(f"{bundle} holds one position, so that no token can be predicted from another: nothing to compare")
    eager = EagerModel(model.config, model.weights)
    windows = token_windows(model, "held_out", text, tokens, manifest.capacity)
    given = sum(map(len, windows))
    if given < tokens:
        note(f"{_text_name(model, text)}: {given} tokens, fewer than the {tokens} that were asked for")
    results: list[Parity] = []
    missing: dict[str, MissingPackage] = {}
    for artifact in manifest.artifacts:
        try:
            for run in _runs(bundle, manifest, artifact, windows):
                record = ParityRecord(
                    runtime=artifact.runtime,
                    kernel=artifact.kernel,
                    executor=run.executor,
                    runtime_version=run.session.runtime_version,
                    against_sha256=model.sha256,
                    text=_text_name(model, text),
                    greedy_tokens=run.greedy_tokens,
                    greedy_identical=_greedy_agreement(run.session, eager, windows[0], run.greedy_tokens),
                    thresholds=run.limits,
                    passed=False,
                    **_compare(run, eager, progress),  # type: ignore[arg-type]
                )
                failures = failures_of(record)
                results.append(Parity(msgspec.structs.replace(record, passed=not failures), failures))
        except MissingPackage as error:
            missing[artifact.name] = error
    if missing and not results:
        raise next(iter(missing.values()))
    guess = model.config.token_count
    if model.tokenizer is not None and results[0].record.perplexity_reference >= guess:
        note(
            f"{against} predicts this text no better than a guess among its {guess} tokens: is it trained, and are text and "
            "tokenizer its own?"
        )
    for name, reason in missing.items():
        note(f"{name} is not compared: {reason}")
    return results


def _runs(bundle: Path, manifest: Manifest, artifact: Artifact, windows: list[list[int]]) -> Iterator[_Run]:
    """Opened one after the other: each holds the whole model. The first executor gets all of the text, others a few tokens."""
    target = target_of(artifact)
    limits, greedy_tokens = target.tolerances(artifact), min(GREEDY_TOKENS, manifest.capacity)
    if "greedy_identical" in limits:
        limits["greedy_identical"] = float(greedy_tokens)
    first, *others = target.executors()
    whole = [(window, max(1, len(window) // 4) if i else 1) for i, window in enumerate(windows)]
    yield _Run(first, open_artifact(bundle, manifest, artifact, executor=first), whole, greedy_tokens, limits)
    start, text = artifact.prefill_chunk, windows[0]
    few = [(text[: start + SECOND_OPINION_STEPS], min(start, len(text) - 1)), (text[:SECOND_OPINION_STEPS], 1)]
    limits = {name: limit for name, limit in limits.items() if name not in ("perplexity_percent", "greedy_identical")}
    for executor in others:  # of few tokens the perplexity is noise
        yield _Run(executor, open_artifact(bundle, manifest, artifact, executor=executor), few, 0, limits)


def _compare(run: _Run, eager: "EagerModel", progress: Callable[[int, int], None]) -> dict[str, float]:
    session = run.session
    total, done = sum(len(window) for window, _ in run.windows), 0
    largest, kl, agreed, loss_ours, loss_theirs, scored = 0.0, 0.0, 0, 0.0, 0.0, 0
    compared = 0
    known = session.manifest.model.config.token_count
    for window, start in run.windows:
        reference = eager.forward(window)[:, :known].astype(np.float64)
        session.reset()
        ours = session.prefill(window[:start])
        for position in range(start - 1, len(window)):
            if position >= start:
                ours = session.step(window[position])
            a, b = reference[position], ours[:known].astype(np.float64)
            if not np.isfinite(b).all():
                raise CheckFailed(f"{session.artifact.name}: the logits after {position + 1} tokens are not finite")
            log_a, log_b = _log_softmax(a), _log_softmax(b)
            largest = max(largest, float(np.abs(a - b).max()))
            kl += float((np.exp(log_a) * (log_a - log_b)).sum())
            agreed += int(a.argmax() == b.argmax())
            compared += 1
            if position + 1 < len(window):
                loss_theirs -= log_a[window[position + 1]]
                loss_ours -= log_b[window[position + 1]]
                scored += 1
        done += len(window)
        progress(done, total)
    return {
        "tokens": compared,
        "max_abs_logit": largest,
        "mean_kl": kl / compared,
        "top1_agreement": agreed / compared,
        "perplexity_reference": float(np.exp(loss_theirs / scored)),
        "perplexity": float(np.exp(loss_ours / scored)),
    }


def _greedy_agreement(session: Session, eager: "EagerModel", window: list[int], length: int) -> int:
    """How many greedy tokens after a short prompt are the same before the first difference."""
    if not length:
        return 0
    prompt = window[: min(16, session.capacity - length + 1)]
    known = session.manifest.model.config.token_count
    session.reset()
    eager.reset()
    ours, expected = session.prefill(prompt), eager.prefill(prompt)
    for i in range(length):
        token = int(np.argmax(ours[:known]))
        if token != int(np.argmax(expected[:known])):
            return i
        if i + 1 < length:
            ours, expected = session.step(token), eager.step(token)
    return length


def failures_of(record: ParityRecord) -> tuple[str, ...]:
    limits, out = record.thresholds, []
    for name in ("max_abs_logit", "mean_kl"):
        if name in limits and not getattr(record, name) <= limits[name]:
            out.append(f"{name} {getattr(record, name):.2e} exceeds {limits[name]:.0e}")
    if "greedy_identical" in limits and record.greedy_identical < limits["greedy_identical"]:
        out.append(f"greedy text differs after {record.greedy_identical} of {record.greedy_tokens} tokens")
    if "perplexity_percent" in limits and not abs(perplexity_percent(record)) <= limits["perplexity_percent"]:
        out.append(f"perplexity moves by {perplexity_percent(record):+.2f} %, allowed are {limits['perplexity_percent']} %")
    return tuple(out)


def proofs(results: Sequence[Parity]) -> list[str]:
    """What the executors that were used do not prove, once each."""
    told = [targets()[r.record.runtime].proof(r.record.executor) for r in results]
    return list(dict.fromkeys(text for text in told if text))


def perplexity_percent(record: ParityRecord) -> float:
    return 100 * (record.perplexity / record.perplexity_reference - 1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    out: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return out


def _text_name(model: Model, text: Path | None) -> str:
    if model.tokenizer is None:
        return "random token ids"
    return Path(text).name if text else "built-in held-out sample"
