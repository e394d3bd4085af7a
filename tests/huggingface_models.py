"""Tiny random models in Hugging Face folders, written by transformers' own classes, which are the reference."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers

from edgeqkv.errors import CacheFull

torch.set_num_threads(1)  # of tensors as small as these a second thread only waits for the first
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
N_POSITIONS = 96
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,  # a quarter of what the tests go through
}
DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
SIZES = {"vocab_size": 131, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON = {**SIZES, "max_position_embeddings": N_POSITIONS, "rope_parameters": DEFAULT, "eos_token_id": 2, "bos_token_id": 1}
MLA = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 56,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 40,
}
MINICPM3 = {**MLA, "num_attention_heads": 4, "num_key_value_heads": 4}  # its class wants hidden_size divisible by the heads


@dataclass(frozen=True)
class Case:
    """A model type and its configuration, the dtype of its file, and how large a shard may be."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shard: str = "1GB"


CASES = {
    # 7 heads on 1, head_dim that is not d / heads, every bias, untied
    "llama-mqa": Case(
        "llama",
        {
            "hidden_size": 56,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama-3": Case("llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-bf16": Case("llama", {"num_key_value_heads": 4}, torch.bfloat16, "60KB"),
    "llama-fp16": Case("llama", {"num_key_value_heads": 2, "head_dim": 8}, torch.float16),
    "qwen2": Case("qwen2", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen3": Case("qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": Case("qwen3", {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True, "rope_parameters": LLAMA3}),
    "youtu": Case("youtu", MLA),
    "youtu-plain-query": Case(
        "youtu",
        {**MLA, "q_lora_rank": None, "attention_bias": True, "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    ),
    "youtu-halves-bf16": Case("youtu", {**MLA, "rope_interleave": False}, torch.bfloat16, "60KB"),
    "minicpm3": Case("minicpm3", {**MINICPM3, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}),
    "minicpm3-longrope": Case(
        "minicpm3",
        {
            **MINICPM3,
            "hidden_size": 96,
            "q_lora_rank": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "v_head_dim": None,  # 96 / 4
            "scale_depth": None,
            "dim_model_base": None,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.06, 1.1, 1.3, 1.9, 2.8, 4.0, 5.5],
                "long_factor": [1.0, 1.06, 1.1, 1.3, 1.9, 2.8, 4.0, 5.5],
                "original_max_position_embeddings": N_POSITIONS,
            },
        },
    ),
}


def write_case(folder: Path, name: str, gain: float = 1.5, **changes: Any) -> Path:
    """The folder as ``save_pretrained`` writes it. A product's weights are ``gain`` / sqrt(inputs) in size."""
    case = CASES[name]
    config = transformers.AutoConfig.for_model(case.model_type, **COMMON | case.options | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, gain)
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.shard)
    return folder


def randomize(model: torch.nn.Module, gain: float, seed: int = 0) -> None:
    """Weights of trained size: no norm is 1 and no bias 0, as they are when a class makes them."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 2:
            values *= 0.3 if "embed_tokens" in name else gain * weight.shape[1] ** -0.5
        else:
            values = 0.3 * values + (1.0 if "norm" in name else 0.0)
        weight.data.copy_(values)


def random_ids(count: int = N_POSITIONS, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], count).tolist()


def load_reference(folder: Path) -> Any:
    """transformers' model, computing in fp32 whatever the file's dtype is."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """transformers' logits of every position: [T, vocab_size]."""
    return load_reference(folder)(torch.tensor([ids])).logits[0].numpy()


def assert_same_function(session: Any, ids: list[int], reference: np.ndarray, tolerance: float, ties: bool = False) -> float:
    """Feed ``ids`` token by token, then in chunks of several sizes, to capacity each time; the largest difference in logits.

    ``reference`` [T, vocab_size] is what another implementation says of every position; the best id has to be the same. With
    ``ties`` it may be another where the reference's two best are so close that the difference can have swapped them.
    """
    assert session.capacity == len(ids)
    stepped = np.stack([session.step(token) for token in ids])
    with pytest.raises(CacheFull):
        session.step(ids[0])
    worst = float(np.abs(stepped - reference).max())
    best = np.sort(reference, axis=1)
    sure = best[:, -1] - best[:, -2] > (2 * worst if ties else -1)
    np.testing.assert_array_equal(stepped.argmax(1)[sure], reference.argmax(1)[sure])
    for first, size in ((1, 7), (20, 40), (len(ids), 1)):
        session.reset()
        ends = [*range(first, len(ids), size), len(ids)]
        for start, end in zip([0, *ends], ends, strict=False):
            out = session.prefill(ids[start:end])
            worst = max(worst, float(np.abs(out - reference[end - 1]).max()))
        with pytest.raises(CacheFull):
            session.step(ids[0])
    assert worst <= tolerance
    return worst


def greedy(session: Any, prompt: list[int]) -> list[int]:
    """The ids that follow ``prompt``, as many as fit."""
    session.reset()
    found = [int(session.prefill(prompt).argmax())]
    while session.depth < session.capacity:
        found.append(int(session.step(found[-1]).argmax()))
    return found


@torch.inference_mode()
def reference_greedy(folder: Path, prompt: list[int], capacity: int) -> list[int]:
    """The same by transformers' generate, which has no end token here."""
    model = load_reference(folder)
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=capacity - len(prompt) + 1,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
