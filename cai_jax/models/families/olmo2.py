"""OLMo 2 (Team OLMo 2024): norms after the branches, and over all heads of queries and keys."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family
from cai_jax.models.families.options import Options


def read(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    biased = options.flag("attention_bias")
    return {
        **family.read_plain(options),
        "norms": "after",
        "query_key_norm": "all_heads",
        "qkv_bias": biased,
        "out_bias": biased,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {**family.write_plain(config), "attention_bias": config.qkv_bias}


OLMO2 = family.Family(
    name="olmo2",
    model_type="olmo2",
    causal_lm="Olmo2ForCausalLM",
    preference_model="Olmo2ForSequenceClassification",
    defaults={
        "vocab_size": 50_304,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
    fixed={
        **family.FULL_ATTENTION,
        **family.FULL_ROTATION,
        "mlp_bias": (False, None),
        "clip_qkv": (None,),
    },
    read=read,
    write=write,
    tensors=family.tensors,
)
