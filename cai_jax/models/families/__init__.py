"""Model families: how the world names what `models/transformer.py` computes.

A family is a table of tensors and two translations of `config.json`. What they do not know is
refused by name, never ignored: an option that is read and not obeyed gives wrong numbers.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from cai_jax.errors import InputError
from cai_jax.models.config import ModelConfig
from cai_jax.models.families.family import FIXED, Family
from cai_jax.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from cai_jax.models.families.gpt2 import GPT2
from cai_jax.models.families.gpt_neox import GPT_NEOX
from cai_jax.models.families.llama import LLAMA
from cai_jax.models.families.mistral import MISTRAL
from cai_jax.models.families.olmo2 import OLMO2
from cai_jax.models.families.options import Options
from cai_jax.models.families.qwen import QWEN2, QWEN3
from cai_jax.models.families.tensors import (
    Tensor,
    file_shape,
    from_file,
    params_shape,
    table,
    to_file,
)

__all__ = [
    "FAMILIES",
    "Tensor",
    "file_shape",
    "from_file",
    "is_ignored",
    "known_name",
    "params_shape",
    "read_config",
    "tensors",
    "to_file",
    "unembedder_name",
    "write_config",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        OLMO2,
        GPT_NEOX,
        GPT2,
    )
}
SCORE_HEAD = "score.weight"
UNEMBEDDERS = {family.unembedder for family in FAMILIES.values()}


def tensors(config: ModelConfig, preference_model: bool) -> tuple[Tensor, ...]:
    """The tensors of a causal LM or of a preference model of this shape."""
    family = FAMILIES[config.family]
    body = family.tensors(config)
    if preference_model:
        return (*body, *table([("score_head/kernel", SCORE_HEAD, "1 D", "D")]))
    if config.tied_embeddings:
        return body
    return (*body, *table([("unembedder/kernel", family.unembedder, "V D", "DV")]))


def known_name(name: str, config: ModelConfig) -> str:
    """The name in the table of `tensors` of what a file calls `name`.

    Files of a bare model lack the prefix of those with a head, and GPT-NeoX has two names for its
    unembedding.
    """
    family = FAMILIES[config.family]
    if name in UNEMBEDDERS:
        return family.unembedder
    if name == SCORE_HEAD or name.startswith(family.prefix):
        return name
    return family.prefix + name


def unembedder_name(config: ModelConfig) -> str:
    """The name of the unembedding, which tied models may have too, equal to their embedding."""
    return FAMILIES[config.family].unembedder


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of a file that is not in the table carries nothing that the model needs."""
    # Old files hold frequencies or masks; tied and classifying ones may hold a second unembedding.
    family = FAMILIES[config.family]
    return name == family.unembedder or re.search(family.ignored, name) is not None


def read_config(values: Mapping[str, Any], where: str) -> tuple[ModelConfig, bool]:
    """Translates a `config.json`, and says whether it is a preference model's.

    Args:
        values: the parsed file.
        where: its path, for messages.

    Raises:
        InputError: another architecture, or an option that this model does not compute.
    """
    architectures = values.get("architectures") or ["none"]
    if not isinstance(architectures, list):
        raise InputError(f"{where}: architectures: expected a list, found {architectures!r}")
    family = _family_of(architectures[0], where)
    preference_model = architectures[0] == family.preference_model
    options = Options(values, family.defaults, where)
    options.check_fixed({"model_type": (family.model_type,), **FIXED, **family.fixed})
    if preference_model:
        labels = len(options.section("id2label")) or values.get("num_labels", 2)
        if labels != 1:
            raise options.unsupported("num_labels (id2label)", 1, labels)
    config = ModelConfig(
        family=family.name,
        tied_embeddings=options.flag("tie_word_embeddings"),
        dtype=options.dtype(),
        **family.read(options),
    )
    return config, preference_model


def write_config(
    config: ModelConfig, preference_model: bool, special_tokens: Mapping[str, int | None]
) -> dict[str, Any]:
    """The `config.json` of a model, readable by `transformers` 4 and 5.

    Raises:
        InputError: the family has no word for something that the model computes.
    """
    family = FAMILIES[config.family]
    values: dict[str, Any] = {
        "architectures": [family.preference_model if preference_model else family.causal_lm],
        "model_type": family.model_type,
        **family.write(config),
        "tie_word_embeddings": config.tied_embeddings,
        "dtype": config.dtype,
    }
    if preference_model:
        values |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    again, _ = read_config(values, "the config.json to be written")
    for field in dataclasses.fields(ModelConfig):
        expected, found = getattr(config, field.name), getattr(again, field.name)
        if expected != found and field.name not in ("remat", "scan_unroll"):
            raise InputError(
                f"model {field.name}: expected {found!r}, all that {family.causal_lm} can be, "
                f"found {expected!r}"
            )
    return values | {f"{name}_token_id": special_tokens.get(name) for name in ("bos", "eos", "pad")}


def _family_of(architecture: Any, where: str) -> Family:
    for family in FAMILIES.values():
        if architecture in (family.causal_lm, family.preference_model):
            return family
    known = ", ".join(family.causal_lm for family in FAMILIES.values())
    raise InputError(
        f"{where}: architectures: expected one of {known}, or its classifier with one label, "
        f"found {architecture}; no other is known (cai_jax/models/families)"
    )
