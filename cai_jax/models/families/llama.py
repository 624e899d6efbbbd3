"""Llama 2, 3, 3.1 and 3.2 (Touvron et al. 2023), and what is saved as one, as SmolLM2 is."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family
from cai_jax.models.families.options import Options


def read(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    biased = options.flag("attention_bias")
    return {
        **family.read_plain(options),
        "qkv_bias": biased,
        "out_bias": biased,
        "mlp_bias": options.flag("mlp_bias"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {
        **family.write_plain(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


LLAMA = family.Family(
    name="llama",
    model_type="llama",
    causal_lm="LlamaForCausalLM",
    preference_model="LlamaForSequenceClassification",
    defaults={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
    fixed={**family.FULL_ATTENTION, **family.FULL_ROTATION, "pretraining_tp": (1, None)},
    read=read,
    write=write,
    tensors=family.tensors,
)
