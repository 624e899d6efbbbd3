"""Qwen2, Qwen2.5 (biases on queries, keys and values) and Qwen3 (norms on queries and keys)."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family
from cai_jax.models.families.options import Options, layer_types


def read_qwen2(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    return {**family.read_plain(options), **_read_window(options), "qkv_bias": True}


def read_qwen3(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    biased = options.flag("attention_bias")
    return {
        **family.read_plain(options),
        **_read_window(options),
        "qkv_bias": biased,
        "out_bias": biased,
        "query_key_norm": "head",
    }


def write_qwen2(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {**family.write_plain(config), **_write_window(config)}


def write_qwen3(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {**write_qwen2(config), "attention_bias": config.qkv_bias}


def _read_window(options: Options) -> dict[str, Any]:
    """The later layers have a window, if any has one and `layer_types` does not say which."""
    window = options.values["sliding_window"] if options.flag("use_sliding_window") else None
    full = options.whole("max_window_layers")
    layers = range(options.whole("num_hidden_layers"))
    windowed = options.windowed_layers([window is not None and n >= full for n in layers])
    if not windowed:
        return {}
    if window is None:
        raise options.error(
            "layer_types", "no sliding_attention without use_sliding_window", window
        )
    return {"window": options.whole("sliding_window"), "windowed_layers": windowed}


def _write_window(config: ModelConfig) -> dict[str, Any]:
    return {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": layer_types(config.layers, config.windowed_layers),
    }


DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
FIXED = {**family.FULL_ROTATION, "use_mrope": (False, None), "mlp_bias": (False, None)}

QWEN2 = family.Family(
    name="qwen2",
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    preference_model="Qwen2ForSequenceClassification",
    defaults=DEFAULTS,
    fixed={**FIXED, "attention_bias": (None,)},  # transformers has these biases whatever it says
    read=read_qwen2,
    write=write_qwen2,
    tensors=family.tensors,
)
QWEN3 = family.Family(
    name="qwen3",
    model_type="qwen3",
    causal_lm="Qwen3ForCausalLM",
    preference_model="Qwen3ForSequenceClassification",
    defaults={**DEFAULTS, "head_dim": 128},
    fixed=FIXED,
    read=read_qwen3,
    write=write_qwen3,
    tensors=family.tensors,
)
