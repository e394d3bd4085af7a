"""The loss of a model on token ids, and its perplexity on a held-out stream, as a whole and by position."""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeqkv.config import ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.training.log import End, Stretch

AT_ONCE = 2**13  # tokens that go through the model together when nothing is learned


def losses(config: ModelConfig, weights: Mapping[str, Tensor], ids: Tensor, precision: str) -> Tensor:
    """Nats of each token but the first: ids [B, T + 1] -> [B, T]. "bf16" is autocast, which keeps norms and sums in fp32."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = decoder(EagerVerbs(config, weights), config, ids[:, :-1], every_position=True)
    return F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")


def divergences(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    teacher: ModelConfig,
    taught: Mapping[str, Tensor],
    ids: Tensor,
    precision: str,
) -> Tensor:
    """KL(teacher || student) at each token but the last, in nats, [B, T] (Hinton et al., arXiv 1503.02531)."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            wanted = decoder(EagerVerbs(teacher, taught), teacher, ids[:, :-1], every_position=True).float().log_softmax(-1)
        logits = decoder(EagerVerbs(config, weights), config, ids[:, :-1], every_position=True).float().log_softmax(-1)
    known = slice(0, config.token_count)  # what lies beyond has probability 0 in both
    return F.kl_div(logits[..., known], wanted[..., known], reduction="none", log_target=True).sum(-1)


def windows(ids: np.ndarray, width: int, most: int | None = None) -> Tensor:
    """[N, width + 1]: windows laid end to end, each with the token behind it. What does not fill one is left out."""
    count = (len(ids) - 1) // width
    count = count if most is None else min(count, most)
    return torch.stack([torch.from_numpy(ids[i * width : (i + 1) * width + 1].astype(np.int64)) for i in range(count)])


@torch.no_grad()
def losses_by_position(config: ModelConfig, weights: Mapping[str, Tensor], cut: Tensor) -> np.ndarray:
    """Mean nats at each position of the windows ``cut``, float64 [T], in fp32."""
    device = next(iter(weights.values())).device
    total = np.zeros(cut.shape[1] - 1)
    for part in torch.split(cut, max(1, AT_ONCE // cut.shape[1])):
        total += losses(config, weights, part.to(device), "fp32").double().sum(0).cpu().numpy()
    return total / len(cut)


def held_out(config: ModelConfig, weights: Mapping[str, Tensor], ids: np.ndarray, width: int, bytes_a_token: float) -> End:
    """Perplexity over all of the windows, and by position in stretches that double: 0 to 15, 16 to 31, 32 to 63, ..."""
    cut = windows(ids, width)
    nats = losses_by_position(config, weights, cut)
    mean = float(nats.mean())
    edges = [0, *(2**i for i in range(4, 32) if 2**i < width), width]
    stretches = tuple(Stretch(a, b, math.exp(nats[a:b].mean())) for a, b in pairwise(edges))
    return End(math.exp(mean), mean / math.log(2) / bytes_a_token, cut.shape[0] * width, stretches)
