"""Tiny random models as Hugging Face folders, made by torch and transformers alone."""

from pathlib import Path

END, PAD, BEGIN = "</s>", "<pad>", "<s>"
CONTROL = (PAD, END, BEGIN)
# Bytes that are merged into one token; all other text is one token a byte.
MERGED = ("\n\n", "th", "the", "Hu", "man", "Human")
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(folder: Path, *, begins: bool = False, chat: bool = False) -> None:
    """A byte-level tokenizer of 265 tokens; one that `begins` has a beginning-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("t", "h"), ("th", "e"), ("H", "u"), ("m", "a"), ("ma", "n")]
    merges.append(("Hu", "man"))
    tokens = [*CONTROL, *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL if begins else CONTROL[:2]))
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary[BEGIN])]
        )
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        bos_token=BEGIN if begins else None,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))


def write_llama(folder: Path, *, seed: int = 0, preference_model: bool = False, **shape):
    """A random Llama with the tokenizer beside it; returns the torch module, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    values = {
        "vocab_size": 288,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if preference_model:
        values["num_labels"] = 1
    torch.manual_seed(seed)
    kind = LlamaForSequenceClassification if preference_model else LlamaForCausalLM
    model = kind(LlamaConfig(**values | shape)).eval().float()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_family(folder: Path, kind: str, *, preference_model: bool = False, **shape):
    """A random model of the config class `kind` of transformers; returns it, in float32.

    No scale of a norm is 1 (or 0, where 1 is added), and no bias 0: either would hide that it is
    not read.
    """
    import torch
    import transformers

    values = {
        "vocab_size": 71,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if kind == "GPT2Config":
        values["n_inner"] = values.pop("intermediate_size")
    epsilons = {"GPT2Config": "layer_norm_epsilon", "GPTNeoXConfig": "layer_norm_eps"}
    values[epsilons.get(kind, "rms_norm_eps")] = 0.02  # large enough to show
    if preference_model:
        values |= {"num_labels": 1}
    config = getattr(transformers, kind)(**values | shape)
    auto = transformers.AutoModelForCausalLM
    if preference_model:
        auto = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    # The eager implementation has every option, soft caps among them.
    model = auto.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                tensor += torch.rand(tensor.shape) - 0.5
    model.save_pretrained(folder)
    return model


# What transformers calls the config of each family, and options that make a difference in a text
# of eleven tokens; odd shapes are spread over the families.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
CASES = {
    "llama: one key/value head, tied": (
        "LlamaConfig",
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "llama: head_dim not D/N, untied, other theta and epsilon": (
        "LlamaConfig",
        {
            "num_key_value_heads": 4,
            "head_dim": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
            "rms_norm_eps": 0.1,
        },
    ),
    "llama: groups of four, biases, scaled as 3.1": (
        "LlamaConfig",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3_SCALING,
        },
    ),
    "mistral: window of four": (
        "MistralConfig",
        {
            "num_key_value_heads": 2,
            "sliding_window": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "qwen2: later layers windowed, yarn": (
        "Qwen2Config",
        {
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 20.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 2.0,
                "beta_slow": 0.5,
            },
        },
    ),
    "qwen3: head_dim not D/N": (
        "Qwen3Config",
        {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True},
    ),
    "gemma: one key/value head": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 6}),
    "gemma2: caps, every other layer windowed": (
        "Gemma2Config",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3: two thetas, the far one scaled": (
        "Gemma3TextConfig",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 6.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 200.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "olmo2: groups of two": ("Olmo2Config", {"num_key_value_heads": 2}),
    "gpt_neox: parallel, half rotated": (
        "GPTNeoXConfig",
        {"hidden_size": 32, "rotary_pct": 0.5, "rotary_emb_base": 50.0},
    ),
    "gpt_neox: sequential, no attention biases, tied": (
        "GPTNeoXConfig",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "rotary_pct": 1.0,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_fast",
        },
    ),
    "gpt2: tied": ("GPT2Config", {}),
    "gpt2: untied, exact gelu": (
        "GPT2Config",
        {"tie_word_embeddings": False, "activation_function": "gelu"},
    ),
}


def leaves(params, prefix: str = "") -> dict:
    """The arrays of a params tree by path."""
    if not isinstance(params, dict):
        return {prefix: params}
    return {
        path: leaf
        for key, value in params.items()
        for path, leaf in leaves(value, f"{prefix}/{key}").items()
    }
