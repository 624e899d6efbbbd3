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


def leaves(params, prefix: str = "") -> dict:
    """The arrays of a params tree by path."""
    if not isinstance(params, dict):
        return {prefix: params}
    return {
        path: leaf
        for key, value in params.items()
        for path, leaf in leaves(value, f"{prefix}/{key}").items()
    }
