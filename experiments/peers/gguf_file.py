"""A model folder of the GPT-2 architecture with QKV or MQA attention as a GGUF file, weights and all.

llama.cpp's architecture "gpt2" is the same graph: learned positions, LayerNorm, GELU, biases, the embedding as head, and any
number of KV heads. So both run the same weights, and as many of them.
"""

from pathlib import Path

import gguf
import numpy as np

from edgeqkv.config import Learned, SharedAttention
from edgeqkv.model_folder import Model

Q8_0, Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
FORMATS = {"Q8_0": (Q8_0, Q8_0), "Q4_0": (Q4_0, Q8_0)}  # of matrices, and of the embedding, which is the head too
BLOCK = {
    "ln_1": "attn_norm",
    "attn.proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.fc": "ffn_up",
    "mlp.proj": "ffn_down",
}


def write_gguf(model: Model, weights: str, path: Path) -> None:
    config, attention = model.config, model.config.attention
    assert isinstance(attention, SharedAttention)
    assert isinstance(config.positions, Learned)
    matrix, embedding = FORMATS[weights]
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.mlp.width)
    writer.add_head_count(attention.n_head)
    writer.add_head_count_kv(attention.n_kv_head)
    writer.add_layer_norm_eps(config.norm.eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")  # driven by ids

    def add(name: str, array: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
        array = array.astype(np.float32)
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)

    add("token_embd.weight", model.weights["wte.weight"], embedding)
    writer.add_tensor("position_embd.weight", model.weights["wpe.weight"].astype(np.float32))
    for part in ("weight", "bias"):
        add(f"output_norm.{part}", model.weights[f"ln_f.{part}"], matrix)
    for layer in range(config.n_layer):
        for part in ("weight", "bias"):
            stacked = [model.weights[f"h.{layer}.attn.{name}.{part}"] for name in "qkv"]
            add(f"blk.{layer}.attn_qkv.{part}", np.concatenate(stacked), matrix)
            for ours, theirs in BLOCK.items():
                add(f"blk.{layer}.{theirs}.{part}", model.weights[f"h.{layer}.{ours}.{part}"], matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
