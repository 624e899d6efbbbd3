"""GPT-2 (Radford et al. 2019): learned positions, and weights that lie as they are multiplied."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family
from cai_jax.models.families.options import ACTIVATION_NAMES, Options
from cai_jax.models.families.tensors import Row, Tensor, table

EMBEDDINGS: tuple[Row, ...] = (
    ("embedder/embedding", "wte.weight", "V D", "VD"),
    ("position_embedder/embedding", "wpe.weight", "T D", "TD"),
)
QKV = "attention/query attention/key attention/value"
QKV_BIAS = "attention/query_bias attention/key_bias attention/value_bias"
LAYER: tuple[Row, ...] = (
    ("attention_norm/scale", "ln_1.weight", "D", "D"),
    ("attention_norm/bias", "ln_1.bias", "D", "D"),
    (QKV, "attn.c_attn.weight", "D PNH", "DNH"),
    (QKV_BIAS, "attn.c_attn.bias", "PNH", "NH"),
    ("attention/out", "attn.c_proj.weight", "NH D", "NHD"),
    ("attention/out_bias", "attn.c_proj.bias", "D", "D"),
    ("mlp_norm/scale", "ln_2.weight", "D", "D"),
    ("mlp_norm/bias", "ln_2.bias", "D", "D"),
    ("mlp/up", "mlp.c_fc.weight", "D F", "DF"),
    ("mlp/up_bias", "mlp.c_fc.bias", "F", "F"),
    ("mlp/down", "mlp.c_proj.weight", "F D", "FD"),
    ("mlp/down_bias", "mlp.c_proj.bias", "D", "D"),
)
FINAL_NORM: tuple[Row, ...] = (
    ("final_norm/scale", "ln_f.weight", "D", "D"),
    ("final_norm/bias", "ln_f.bias", "D", "D"),
)


def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """The tensors but the heads; the same ones whatever the config."""
    return (
        *table(EMBEDDINGS, "transformer."),
        *table(LAYER, "transformer.h.{layer}.", "layers/"),
        *table(FINAL_NORM, "transformer."),
    )


def read(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    width, heads = options.whole("n_embd"), options.whole("n_head")
    if width % max(heads, 1):
        raise options.error("n_embd", f"a multiple of {heads} heads", width)
    return {
        "vocab_size": options.whole("vocab_size"),
        "width": width,
        "layers": options.whole("n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "hidden": options.whole("n_inner", 4 * width),
        "norm_eps": options.positive("layer_norm_epsilon"),
        "max_positions": options.whole("n_positions"),
        "activation": options.activation("activation_function"),
        "learned_positions": True,
        "norm": "layer",
        "qkv_bias": True,
        "out_bias": True,
        "gated": False,
        "mlp_bias": True,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES[config.activation],
    }


GPT2 = family.Family(
    name="gpt2",
    model_type="gpt2",
    causal_lm="GPT2LMHeadModel",
    preference_model="GPT2ForSequenceClassification",
    defaults={
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    fixed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "reorder_and_upcast_attn": (False, None),
        "rope_scaling": (None,),
        "rope_parameters": (None,),
        "sliding_window": (None,),
    },
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
    ignored=r"\.attn\.(bias|masked_bias)$",
)
