"""Mistral (Jiang et al. 2023): Llama with a sliding window in all layers, or in none."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family
from cai_jax.models.families.options import Options


def read(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    fields = family.read_plain(options)
    if options.values["sliding_window"] is None:
        return fields
    windowed_layers = tuple(range(fields["layers"]))
    return fields | {"window": options.whole("sliding_window"), "windowed_layers": windowed_layers}


def write(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {**family.write_plain(config), "sliding_window": config.window}


MISTRAL = family.Family(
    name="mistral",
    model_type="mistral",
    causal_lm="MistralForCausalLM",
    preference_model="MistralForSequenceClassification",
    defaults={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    # A pattern of layers is Ministral's; transformers reads over it here.
    fixed={
        **family.FULL_ROTATION,
        "layer_types": (None,),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
    },
    read=read,
    write=write,
    tensors=family.tensors,
)
