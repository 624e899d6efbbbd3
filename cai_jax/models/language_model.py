"""A model with what is needed to use it on text."""

from typing import Any, NamedTuple

from cai_jax.models.config import ModelConfig


class LanguageModel(NamedTuple):
    """A causal LM, or a preference model when `params` has a `score_head`.

    `tokenizer` needs `encode(text) -> list[int]`, `decode(ids) -> str`, `eos_id`, `pad_id`,
    `stops` (texts that end a response besides) and `save(folder)`; `data/tokenization.py` has the
    one that everything uses.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Any
