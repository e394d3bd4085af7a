"""config.json of Hugging Face: the model types that are read, and every field of theirs.

A field either is honoured, or may hold the values that change nothing (:data:`ONLY`), or cannot change what a model computes
(:data:`HARMLESS`). Any other is refused by name: a field that is not known may be what makes a model different. A field that is
absent has the default of transformers' class; sizes have none.
"""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

from msgspec import to_builtins

from edgeqkv.config import (
    MLP,
    Epsilon,
    Factor,
    Head,
    LatentAttention,
    Layers,
    ModelConfig,
    Norm,
    Rotary,
    SharedAttention,
    Size,
    refuse,
)
from edgeqkv.errors import EdgeQKVError
from edgeqkv.huggingface.rope import positions_of
from edgeqkv.strict import Strict, from_json, read_json

# Norms of MLA's latents: transformers' classes make them without the configuration's rms_norm_eps.
LATENT_EPS = 1e-6

# What transformers 4 and 5 write beside the architecture.
HARMLESS = frozenset(
    name
    for names in (
        # where it comes from
        "_commit_hash _name_or_path architectures auto_map is_llama_config model_type name_or_path tokenizer_class",
        "transformers.js_config transformers_version unsloth_fixed unsloth_version",
        # how it was trained
        "attention_dropout classifier_dropout embedding_initializer_range finetuning_task gradient_checkpointing id2label",
        "initializer_range label2id num_labels prefix problem_type task_specific_params",
        # how transformers' classes compute, and what they return beside the logits
        "_attn_implementation _attn_implementation_autoset attn_implementation chunk_size_feed_forward dtype is_decoder",
        "output_attentions output_hidden_states output_past output_scores pretraining_tp return_dict return_dict_in_generate",
        "tf_legacy_loss tie_encoder_decoder tie_last_hidden_states torch_dtype torchscript use_bfloat16 use_cache",
        # which layers have a sliding window, where there is one: see use_sliding_window
        "max_window_layers",
        # how text is generated (edgeqkv.huggingface.text reads the end tokens)
        "bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample early_stopping",
        "encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff",
        "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens",
        "min_length min_new_tokens no_repeat_ngram_size num_beam_groups num_beams num_return_sequences pad_token_id",
        "remove_invalid_values repetition_penalty sep_token_id suppress_tokens temperature top_k top_p typical_p",
    )
    for name in names.split()
)
# Fields that would change the function, and the values with which they do not.
Only = dict[str, tuple[Any, ...]]
ONLY: Only = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
QUANTISED = ("quantization_config", "compression_config", "quantization")


class Fields(Strict, frozen=True, kw_only=True):
    """What all model types have. A subclass is one ``model_type``, with its class's defaults."""

    only: ClassVar[Only] = {}

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    max_position_embeddings: Size
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: list[str] | None = None
    sliding_window: Any = None  # without use_sliding_window it means nothing
    rope_theta: Factor | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if any(kind != "full_attention" for kind in self.layer_types or ()):
            refuse("layer_types: only full_attention is supported")

    def config(self) -> ModelConfig:
        """The same model in our words."""
        raise NotImplementedError

    @property
    def interleaved(self) -> bool:
        """Whether rotary positions turn a channel with its neighbour."""
        return False

    @property
    def n_kv_head(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def positions(self, dim: int) -> tuple[Rotary, int]:
        """How ``dim`` channels of a head are turned, and for how many positions."""
        return positions_of(self.rope_parameters, self.rope_scaling, self.rope_theta, dim, self.max_position_embeddings)

    def build(
        self, attention: SharedAttention | LatentAttention, rope_dim: int, embedding: float, residual: float, head: float
    ) -> ModelConfig:
        positions, n_positions = self.positions(rope_dim)
        return ModelConfig(
            n_layer=self.num_hidden_layers,
            d_model=self.hidden_size,
            n_positions=n_positions,
            vocab_size=self.vocab_size,
            token_count=self.vocab_size,
            embedding_scale=embedding,
            residual_scale=residual,
            positions=positions,
            norm=Norm(kind="rms_norm", eps=self.rms_norm_eps),
            attention=attention,
            mlp=MLP(kind="swiglu", width=self.intermediate_size, bias=self.mlp_bias),
            head=Head(tied=self.tie_word_embeddings, scale=head),
        )


class Llama(Fields, frozen=True, kw_only=True):
    """Llama 2 and 3, SmolLM2, TinyLlama: ``attention_bias`` is of all four projections."""

    only: ClassVar[Only] = {"sliding_window": (None,)}

    head_dim: Size | None = None

    def config(self) -> ModelConfig:
        return self.shared(bias=self.attention_bias, out_bias=self.attention_bias, qk_norm=False)

    def shared(self, bias: bool, out_bias: bool, qk_norm: bool) -> ModelConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            refuse(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}")
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        attention = SharedAttention(
            projections="QKV",
            n_head=self.num_attention_heads,
            n_kv_head=self.n_kv_head,
            head_dim=head_dim,
            bias=bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
        )
        return self.build(attention, head_dim, 1.0, 1.0, 1.0)


class Qwen2(Llama, frozen=True, kw_only=True):
    """Qwen 2 and 2.5: biases on q, k and v, without a field for them."""

    only: ClassVar[Only] = {"attention_bias": (True,), "mlp_bias": (False,)}

    def config(self) -> ModelConfig:
        return self.shared(bias=True, out_bias=False, qk_norm=False)


class Qwen3(Llama, frozen=True, kw_only=True):
    """Qwen 3: RMSNorm over the channels of each head of q and k, and a ``head_dim`` of its own."""

    only: ClassVar[Only] = {"mlp_bias": (False,)}

    head_dim: Size | None = 128

    def config(self) -> ModelConfig:
        return self.shared(bias=self.attention_bias, out_bias=self.attention_bias, qk_norm=True)


class Latent(Fields, frozen=True, kw_only=True):
    """Multi-head latent attention. ``head_dim`` and ``qk_head_dim`` repeat what other fields say."""

    kv_lora_rank: Size
    q_lora_rank: Size | None
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size | None = None
    head_dim: Size | None = None
    qk_head_dim: Size | None = None

    def latent(self, embedding: float = 1.0, residual: float = 1.0, head: float = 1.0) -> ModelConfig:
        whole = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.n_kv_head != self.num_attention_heads:
            refuse(f"latent attention needs num_key_value_heads {self.n_kv_head} to be num_attention_heads")
        if self.head_dim not in (None, self.qk_rope_head_dim) or self.qk_head_dim not in (None, whole):
            refuse(f"head_dim and qk_head_dim contradict qk_rope_head_dim {self.qk_rope_head_dim} and qk_nope_head_dim")
        attention = LatentAttention(
            form="absorbed",
            n_head=self.num_attention_heads,
            q_rank=self.q_lora_rank,
            kv_rank=self.kv_lora_rank,
            nope_dim=self.qk_nope_head_dim,
            rope_dim=self.qk_rope_head_dim,
            value_dim=self.v_head_dim or self.hidden_size // self.num_attention_heads,
            bias=self.attention_bias,
            norm_eps=LATENT_EPS,
            softmax_scale=whole**-0.5,
        )
        return self.build(attention, self.qk_rope_head_dim, embedding, residual, head)


class MiniCPM3(Latent, frozen=True, kw_only=True):
    """MiniCPM3: scales on embeddings, residual branches and what goes into the head, as transformers' class has them."""

    q_lora_rank: Size | None = 768
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    scale_emb: Factor = 12.0
    scale_depth: Factor | None = 1.4
    dim_model_base: Factor | None = 256.0

    def config(self) -> ModelConfig:
        residual = 1.0 if self.scale_depth is None else self.scale_depth / math.sqrt(self.num_hidden_layers)
        head = 1.0 if self.dim_model_base is None else self.dim_model_base / self.hidden_size
        return self.latent(self.scale_emb, residual, head)


class Youtu(Latent, frozen=True, kw_only=True):
    """Youtu-LLM: DeepSeek-V3's attention, with pairs of neighbours turned."""

    only: ClassVar[Only] = {"mlp_bias": (False,)}

    q_lora_rank: Size | None = 1536
    tie_word_embeddings: bool = True
    rope_interleave: bool | None = True

    @property
    def interleaved(self) -> bool:
        return bool(self.rope_interleave)

    def config(self) -> ModelConfig:
        return self.latent()


MODEL_TYPES: dict[str, type[Fields]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "minicpm3": MiniCPM3,
    "youtu": Youtu,
}


def read_fields(path: Path) -> tuple[ModelConfig, bool]:
    """The architecture that config.json at ``path`` says, and whether its rotary pairs are interleaved in the weights.

    ``token_count`` is ``vocab_size``: config.json does not know the tokenizer.
    """
    data, where = read_json(path), str(path)
    if not isinstance(data, dict):
        raise EdgeQKVError(f"{where}: expected an object")
    kind = _model_type(data, where)
    fields = from_json(kind, {name: data[name] for name in kind.__struct_fields__ if name in data}, where)
    try:
        config = fields.config()
    except EdgeQKVError as error:
        raise EdgeQKVError(f"{where}: {error}") from error
    return from_json(ModelConfig, to_builtins(config), where), fields.interleaved  # bounds of what was computed


def _model_type(data: dict[str, Any], where: str) -> type[Fields]:
    """The class of its fields, after those that it has none for were looked at."""
    model_type = data.get("model_type")
    if model_type not in MODEL_TYPES:
        refuse(f"{where}: model_type {model_type!r} is not supported, only {', '.join(MODEL_TYPES)}")
    kind = MODEL_TYPES[model_type]
    for name in QUANTISED:
        if data.get(name) is not None:
            refuse(f"{where}: {name} says that the checkpoint is quantised; those in bf16, fp16 and fp32 are supported")
    only = {**ONLY, **kind.only}
    for name, values in only.items():
        if name in data and data[name] not in values:
            refuse(f"{where}: {name} {json.dumps(data[name])} is not supported for {model_type}, only {json.dumps(values[0])}")
    if unknown := sorted(data.keys() - {*kind.__struct_fields__, *only, *HARMLESS, *QUANTISED}):
        refuse(f"{where}: the field {unknown[0]!r} is not known for {model_type} and may change what the model computes")
    return kind
