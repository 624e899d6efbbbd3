"""What a family is, and what most of them share with Llama."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import rope
from cai_jax.models.families.options import ACTIVATION_NAMES, Options
from cai_jax.models.families.tensors import Row, Tensor, table


class Family(NamedTuple):
    """An architecture of transformers: its names, its options and its tensors."""

    name: str  # ModelConfig.family
    model_type: str
    causal_lm: str  # the class of transformers
    preference_model: str  # the class with a score head
    defaults: Mapping[str, Any]  # of the options that are read, as its config class has them
    fixed: Mapping[str, tuple[Any, ...]]  # options with one supported value, named first
    read: Callable[[Options], Mapping[str, Any]]  # options -> fields of ModelConfig
    write: Callable[[ModelConfig], Mapping[str, Any]]  # and back
    tensors: Callable[[ModelConfig], tuple[Tensor, ...]]  # without heads
    prefix: str = "model."  # of the names of all tensors but the heads
    unembedder: str = "lm_head.weight"
    ignored: str = r"rotary_emb\.inv_freq$"  # tensors that hold no parameters, as a pattern


# Refused in every family.
FIXED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "use_bidirectional_attention": (False, None),
}
FULL_ATTENTION = {"sliding_window": (None,), "layer_types": (None,)}
FULL_ROTATION = {"partial_rotary_factor": (1.0, None)}

ATTENTION: tuple[Row, ...] = (
    ("attention/query", "self_attn.q_proj.weight", "NH D", "DNH"),
    ("attention/key", "self_attn.k_proj.weight", "KH D", "DKH"),
    ("attention/value", "self_attn.v_proj.weight", "KH D", "DKH"),
    ("attention/out", "self_attn.o_proj.weight", "D NH", "NHD"),
)
QKV_BIAS: tuple[Row, ...] = (
    ("attention/query_bias", "self_attn.q_proj.bias", "NH", "NH"),
    ("attention/key_bias", "self_attn.k_proj.bias", "KH", "KH"),
    ("attention/value_bias", "self_attn.v_proj.bias", "KH", "KH"),
)
OUT_BIAS: tuple[Row, ...] = (("attention/out_bias", "self_attn.o_proj.bias", "D", "D"),)
QUERY_KEY_NORM: dict[str, tuple[Row, ...]] = {
    "none": (),
    "head": (
        ("attention/query_norm/scale", "self_attn.q_norm.weight", "H", "H"),
        ("attention/key_norm/scale", "self_attn.k_norm.weight", "H", "H"),
    ),
    "all_heads": (
        ("attention/query_norm/scale", "self_attn.q_norm.weight", "NH", "NH"),
        ("attention/key_norm/scale", "self_attn.k_norm.weight", "KH", "KH"),
    ),
}
MLP: tuple[Row, ...] = (
    ("mlp/gate", "mlp.gate_proj.weight", "F D", "DF"),
    ("mlp/up", "mlp.up_proj.weight", "F D", "DF"),
    ("mlp/down", "mlp.down_proj.weight", "D F", "FD"),
)
MLP_BIAS: tuple[Row, ...] = (
    ("mlp/gate_bias", "mlp.gate_proj.bias", "F", "F"),
    ("mlp/up_bias", "mlp.up_proj.bias", "F", "F"),
    ("mlp/down_bias", "mlp.down_proj.bias", "D", "D"),
)
NORMS: dict[str, tuple[Row, ...]] = {
    "before": (
        ("attention_norm/scale", "input_layernorm.weight", "D", "D"),
        ("mlp_norm/scale", "post_attention_layernorm.weight", "D", "D"),
    ),
    "after": (
        ("attention_post_norm/scale", "post_attention_layernorm.weight", "D", "D"),
        ("mlp_post_norm/scale", "post_feedforward_layernorm.weight", "D", "D"),
    ),
    "both": (
        ("attention_norm/scale", "input_layernorm.weight", "D", "D"),
        ("attention_post_norm/scale", "post_attention_layernorm.weight", "D", "D"),
        ("mlp_norm/scale", "pre_feedforward_layernorm.weight", "D", "D"),
        ("mlp_post_norm/scale", "post_feedforward_layernorm.weight", "D", "D"),
    ),
}


def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """The tensors, but the heads, of Llama and of those named alike."""
    layer = (
        *NORMS[config.norms],
        *ATTENTION,
        *(QKV_BIAS if config.qkv_bias else ()),
        *(OUT_BIAS if config.out_bias else ()),
        *QUERY_KEY_NORM[config.query_key_norm],
        *MLP,
        *(MLP_BIAS if config.mlp_bias else ()),
    )
    return (
        *table([("embedder/embedding", "model.embed_tokens.weight", "V D", "VD")]),
        *table(layer, "model.layers.{layer}.", "layers/"),
        *table([("final_norm/scale", "model.norm.weight", "D", "D")]),
    )


def read_shape(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig` that most families have under the names of Llama."""
    width, heads = options.whole("hidden_size"), options.whole("num_attention_heads")
    return {
        "vocab_size": options.whole("vocab_size"),
        "width": width,
        "layers": options.whole("num_hidden_layers"),
        "heads": heads,
        "kv_heads": options.whole("num_key_value_heads", heads),
        "head_dim": options.whole("head_dim", width // max(heads, 1)),
        "hidden": options.whole("intermediate_size"),
        "norm_eps": options.positive("rms_norm_eps"),
        "max_positions": options.whole("max_position_embeddings"),
    }


def write_shape(config: ModelConfig) -> dict[str, Any]:
    """The options of `read_shape`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
    }


def read_plain(options: Options) -> dict[str, Any]:
    """`read_shape`, and one activation and one kind of rotary positions in all layers."""
    return {
        **read_shape(options),
        **rope.read(options),
        "activation": options.activation("hidden_act"),
    }


def write_plain(config: ModelConfig) -> dict[str, Any]:
    """The options of `read_plain`."""
    return {
        **write_shape(config),
        **rope.write(config),
        "hidden_act": ACTIVATION_NAMES[config.activation],
    }
