"""The training loop: AdamW over a job, with progress that survives a kill at any moment."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

import edgeqkv
from edgeqkv.atomic import atomic_file
from edgeqkv.errors import CheckFailed, EdgeQKVError
from edgeqkv.parameters import parameter_count
from edgeqkv.training.job import Job, batch_at, first_weights, identity
from edgeqkv.training.log import Log, Start, Step
from edgeqkv.training.loss import divergences, held_out, losses, losses_by_position, windows

GLIMPSE = 24  # windows of the held-out text that are looked at on the way


def train(job: Job, progress: Path, device: str, say: Callable[[str], None]) -> tuple[dict[str, np.ndarray], Log]:
    """Weights in fp16, and the log. ``progress`` is a file that is written every ``save_every`` steps, whole or not at all.
    Where it exists the run goes on from it, and on one thread it ends with the same weights bit for bit."""
    recipe, config = job.recipe, job.config
    weights = first_weights(job, device)
    taught = (
        {}
        if job.teacher is None
        else {n: torch.from_numpy(w.astype(np.float32)).to(device) for n, w in job.teacher.weights.items()}
    )
    groups = [
        {"params": [w for w in weights.values() if w.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=recipe.betas, fused=True)
    begin, steps = 0, list[Step]()
    if progress.exists():
        begin, steps = _restore(progress, job, weights, optimiser, device)
        say(f"going on from step {begin}")
    glimpse = windows(job.held_out.ids, job.width, GLIMPSE)
    since, recent = time.monotonic(), list[float]()
    for step in range(begin, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(step)
        recent.append(_step(job, weights, taught, optimiser, batch_at(job, step).to(device)))
        if (step + 1) % recipe.save_every and step + 1 < recipe.steps:
            continue
        nats, seconds = float(losses_by_position(config, weights, glimpse).mean()), time.monotonic() - since
        steps.append(Step(step + 1, round(sum(recent) / len(recent), 4), round(nats, 4), round(seconds, 1)))
        if not np.isfinite(nats) or not np.isfinite(recent).all():
            raise CheckFailed(
                f"the loss became {recent[-1]} before step {step + 1}; give the recipe a lower peak or more warmup"
            )
        _save(progress, job, step + 1, steps, weights, optimiser)
        say(_line(job, steps[-1], len(recent) / seconds))
        since, recent = time.monotonic(), []
    stored = {name: w.detach().half() for name, w in weights.items()}
    end = held_out(config, {n: w.float() for n, w in stored.items()}, job.held_out.ids, job.width, _bytes_a_token(job))
    return {name: w.cpu().numpy() for name, w in stored.items()}, Log(_start(job, device), tuple(steps), end)


def _step(
    job: Job, weights: Mapping[str, Tensor], taught: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, ids: Tensor
) -> float:
    """One step of the optimiser; the mean loss before it."""
    recipe, total = job.recipe, 0.0
    optimiser.zero_grad()
    for part in torch.split(ids, recipe.at_once or recipe.batch):
        if job.teacher is None:
            nats = losses(job.config, weights, part, recipe.precision)
        else:
            nats = divergences(job.config, weights, job.teacher.config, taught, part, recipe.precision)
        loss = nats.sum() / (len(ids) * job.width)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(list(weights.values()), recipe.clip)
    optimiser.step()
    return total


def _restore(
    path: Path, job: Job, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, device: str
) -> tuple[int, list[Step]]:
    damaged = f"{path} is damaged, or no progress of edgeqkv train; remove it to begin anew"
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        its_own, steps = saved["identity"], msgspec.convert(saved["steps"], list[Step])
    except Exception as error:  # torch.load raises what its many readers do
        raise EdgeQKVError(damaged) from error
    ours = identity(job)
    if its_own != ours:
        different = [name for name in ours if its_own.get(name) != ours[name]]
        raise EdgeQKVError(
            f"{path} is the progress of another run: its {' and '.join(different)} differs; remove it or name another --out"
        )
    try:
        for name, w in weights.items():
            w.data.copy_(saved["weights"][name])
        optimiser.load_state_dict(saved["optimiser"])
        return int(saved["step"]), steps
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise EdgeQKVError(damaged) from error


def _save(
    path: Path, job: Job, step: int, steps: list[Step], weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Not made in memory first, for it holds the weights three times."""
    content = {
        "identity": identity(job),
        "step": step,
        "steps": msgspec.to_builtins(steps),
        "weights": {name: w.detach() for name, w in weights.items()},
        "optimiser": optimiser.state_dict(),
    }
    kept = "the last progress that was saved is kept"
    try:
        with atomic_file(path, durable=True) as file:
            torch.save(content, file)
    except EdgeQKVError as error:
        raise EdgeQKVError(f"{error}; {kept}") from error
    except RuntimeError as error:  # of torch's writer on a full disk
        raise EdgeQKVError(f"cannot write {path}: {error}; {kept}") from error


def _line(job: Job, step: Step, steps_a_second: float) -> str:
    left = (job.recipe.steps - step.step) / steps_a_second / 60
    return (
        f"step {step.step}/{job.recipe.steps}  loss {step.loss:.3f}  held-out {step.held_out:.3f}  "
        f"{steps_a_second * job.recipe.batch * job.width:,.0f} tokens/s  {left:.0f} min left"
    )


def _bytes_a_token(job: Job) -> float:
    return job.held_out.bytes / len(job.held_out.ids)


def _start(job: Job, device: str) -> Start:
    return Start(
        recipe=job.name,
        variant=job.config.variant,
        seed=job.recipe.seed,
        config=job.config,
        parameters=parameter_count(job.config),
        steps=job.recipe.steps,
        tokens_a_step=job.recipe.batch * job.width,
        precision=job.recipe.precision,
        text_tokens=len(job.train.ids),
        text_sha256=job.train.sha256,
        held_out_tokens=len(job.held_out.ids),
        held_out_sha256=job.held_out.sha256,
        held_out_titles=job.held_out.titles,
        source=job.source,
        device=device,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        edgeqkv=edgeqkv.__version__,
    )
