"""Gemma, Gemma 2 and the text models of Gemma 3 (Gemma Team 2024, 2025).

All scale the embeddings by D^0.5, and their norms by 1 + w. Gemma 2 norms the branches on both
sides, caps logits, and alternates layers with and without a window; Gemma 3 norms queries and keys
in place of the caps, and gives the windowed layers a rotary base of their own.
"""

from collections.abc import Mapping
from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family, rope
from cai_jax.models.families.options import ACTIVATION_NAMES, Options, layer_types


def read_gemma(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    # The first release said "gelu" and meant its tanh form; transformers reads it so.
    old = options.values["hidden_act"] == "gelu"
    activation = "gelu_tanh" if old else options.activation("hidden_act")
    return {**_read_any(options), **rope.read(options), "activation": activation}


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {
        **family.write_shape(config),
        **rope.write(config),
        "hidden_act": _activation_name(config),
        "attention_bias": config.qkv_bias,
    }


def read_gemma2(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    return {
        **_read_later(options, pattern=2),
        **rope.read(options),
        "attention_soft_cap": options.positive_or_none("attn_logit_softcapping"),
    }


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {
        **_write_later(config),
        **rope.write(config),
        "attn_logit_softcapping": config.attention_soft_cap,
    }


def read_gemma3(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    rotations = options.section("rope_parameters")
    kinds = {"full_attention", "sliding_attention"}
    if not set(rotations) <= kinds:
        raise options.error("rope_parameters", f"only {' and '.join(sorted(kinds))}", rotations)
    full = {**(rotations.get("full_attention") or {}), **options.section("rope_scaling")}
    local = rotations.get("sliding_attention") or {}
    name = "rope_parameters.sliding_attention"
    if rope.scaling(options, name, local) is not None:
        raise options.unsupported(f"{name}.rope_type", "default", local["rope_type"])
    theta = full.get("rope_theta", options.values["rope_theta"])
    local_theta = local.get("rope_theta", options.values["rope_local_base_freq"])
    for section in (full, local):
        if section.get("partial_rotary_factor") not in (None, 1.0):
            raise options.unsupported(
                "partial_rotary_factor", 1.0, section["partial_rotary_factor"]
            )
    pattern = options.whole("sliding_window_pattern")
    return {
        **_read_later(options, pattern),
        "query_key_norm": "head",
        "rope_theta": options.a_positive("rope_theta", theta),
        "rope_scaling": rope.scaling(options, "rope_parameters.full_attention", full),
        "local_rope_theta": options.a_positive("rope_local_base_freq", local_theta),
    }


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    scaling = rope.written_scaling(config.rope_scaling)
    local: Mapping[str, Any] = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    return {
        **_write_later(config),
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": scaling if config.rope_scaling else None,
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": config.rope_theta},
            "sliding_attention": local,
        },
    }


def _read_any(options: Options) -> dict[str, Any]:
    biased = options.flag("attention_bias")
    return {
        **family.read_shape(options),
        "scaled_embeddings": True,
        "unit_offset": True,
        "qkv_bias": biased,
        "out_bias": biased,
    }


def _read_later(options: Options, pattern: int) -> dict[str, Any]:
    """What Gemma 2 and 3 share; every `pattern`-th layer has no window by default."""
    layers = range(options.whole("num_hidden_layers"))
    windowed = options.windowed_layers([(n + 1) % pattern != 0 for n in layers])
    return {
        **_read_any(options),
        "norms": "both",
        "activation": options.activation("hidden_activation"),
        "query_scalar": options.whole("query_pre_attn_scalar"),
        "logits_soft_cap": options.positive_or_none("final_logit_softcapping"),
        "window": options.whole("sliding_window") if windowed else None,
        "windowed_layers": windowed,
    }


def _write_later(config: ModelConfig) -> dict[str, Any]:
    return {
        **family.write_shape(config),
        "hidden_activation": _activation_name(config),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": config.query_scalar,
        "final_logit_softcapping": config.logits_soft_cap,
        "sliding_window": config.window,
        "layer_types": layer_types(config.layers, config.windowed_layers),
    }


def _activation_name(config: ModelConfig) -> str:
    return ACTIVATION_NAMES[config.activation]


DEFAULTS = {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}
LATER_DEFAULTS = {
    **DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
FIXED = {**family.FULL_ROTATION, "mlp_bias": (False, None)}

GEMMA = family.Family(
    name="gemma",
    model_type="gemma",
    causal_lm="GemmaForCausalLM",
    preference_model="GemmaForSequenceClassification",
    defaults=DEFAULTS,
    fixed={
        **FIXED,
        **family.FULL_ATTENTION,
        "hidden_activation": (None, "gelu_pytorch_tanh"),
    },
    read=read_gemma,
    write=write_gemma,
    tensors=family.tensors,
)
GEMMA2 = family.Family(
    name="gemma2",
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    preference_model="Gemma2ForSequenceClassification",
    defaults={**LATER_DEFAULTS, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    fixed=FIXED,
    read=read_gemma2,
    write=write_gemma2,
    tensors=family.tensors,
)
GEMMA3 = family.Family(
    name="gemma3",
    model_type="gemma3_text",
    causal_lm="Gemma3ForCausalLM",
    preference_model="Gemma3TextForSequenceClassification",
    defaults={
        **LATER_DEFAULTS,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
    fixed={**FIXED, "attn_logit_softcapping": (None,)},  # transformers has no such cap in Gemma 3
    read=read_gemma3,
    write=write_gemma3,
    tensors=family.tensors,
)
