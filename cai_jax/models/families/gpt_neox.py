"""GPT-NeoX (Black et al. 2022), of which Pythia is one: parallel residuals, partial rotation."""

from typing import Any

from cai_jax.models.config import ModelConfig
from cai_jax.models.families import family, rope
from cai_jax.models.families.options import ACTIVATION_NAMES, Options
from cai_jax.models.families.tensors import Row, Tensor, table

NORM_AND_MLP: tuple[Row, ...] = (
    ("attention_norm/scale", "input_layernorm.weight", "D", "D"),
    ("attention_norm/bias", "input_layernorm.bias", "D", "D"),
    ("mlp_norm/scale", "post_attention_layernorm.weight", "D", "D"),
    ("mlp_norm/bias", "post_attention_layernorm.bias", "D", "D"),
    ("mlp/up", "mlp.dense_h_to_4h.weight", "F D", "DF"),
    ("mlp/up_bias", "mlp.dense_h_to_4h.bias", "F", "F"),
    ("mlp/down", "mlp.dense_4h_to_h.weight", "D F", "FD"),
    ("mlp/down_bias", "mlp.dense_4h_to_h.bias", "D", "D"),
)
QKV = "attention/query attention/key attention/value"
QKV_BIAS = "attention/query_bias attention/key_bias attention/value_bias"
# Head by head: its query, its key, its value.
ATTENTION: tuple[Row, ...] = (
    (QKV, "attention.query_key_value.weight", "NPH D", "DNH"),
    ("attention/out", "attention.dense.weight", "D NH", "NHD"),
)
ATTENTION_BIAS: tuple[Row, ...] = (
    (QKV_BIAS, "attention.query_key_value.bias", "NPH", "NH"),
    ("attention/out_bias", "attention.dense.bias", "D", "D"),
)
FINAL_NORM: tuple[Row, ...] = (
    ("final_norm/scale", "gpt_neox.final_layer_norm.weight", "D", "D"),
    ("final_norm/bias", "gpt_neox.final_layer_norm.bias", "D", "D"),
)


def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """The tensors but the heads."""
    layer = (*NORM_AND_MLP, *ATTENTION, *(ATTENTION_BIAS if config.qkv_bias else ()))
    return (
        *table([("embedder/embedding", "gpt_neox.embed_in.weight", "V D", "VD")]),
        *table(layer, "gpt_neox.layers.{layer}.", "layers/"),
        *table(FINAL_NORM),
    )


def read(options: Options) -> dict[str, Any]:
    """The fields of `ModelConfig`."""
    width, heads = options.whole("hidden_size"), options.whole("num_attention_heads")
    if width % max(heads, 1):
        raise options.error("hidden_size", f"a multiple of {heads} heads", width)
    name = "rope_scaling" if options.section("rope_scaling") else "rope_parameters"
    fraction = options.section(name).get("partial_rotary_factor", options.values["rotary_pct"])
    biased = options.flag("attention_bias")
    return {
        "vocab_size": options.whole("vocab_size"),
        "width": width,
        "layers": options.whole("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "hidden": options.whole("intermediate_size"),
        "norm_eps": options.positive("layer_norm_eps"),
        "max_positions": options.whole("max_position_embeddings"),
        **rope.read(options, theta="rotary_emb_base"),
        "rotary_fraction": options.a_positive("rotary_pct", fraction),
        "activation": options.activation("hidden_act"),
        "norm": "layer",
        "parallel_residual": options.flag("use_parallel_residual"),
        "qkv_bias": biased,
        "out_bias": biased,
        "gated": False,
        "mlp_bias": True,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The options."""
    values = rope.write(config)
    del values["rope_theta"]
    values["rope_parameters"]["partial_rotary_factor"] = config.rotary_fraction
    return {
        **values,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_theta,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
    }


GPT_NEOX = family.Family(
    name="gpt_neox",
    model_type="gpt_neox",
    causal_lm="GPTNeoXForCausalLM",
    preference_model="GPTNeoXForSequenceClassification",
    defaults={
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10_000.0,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    fixed={**family.FULL_ATTENTION, "head_dim": (None,), "partial_rotary_factor": (None,)},
    read=read,
    write=write,
    tensors=tensors,
    prefix="gpt_neox.",
    unembedder="embed_out.weight",
    ignored=r"\.attention\.(rotary_emb\.inv_freq|bias|masked_bias)$",
)
