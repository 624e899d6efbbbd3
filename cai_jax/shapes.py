"""Shapes of public models, for plans made where their folders are not.

The numbers are those of each model's `config.json` on the hub: the ones that decide sizes, no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cai_jax import checkpoints, inputs
from cai_jax.errors import InputError
from cai_jax.models.config import ModelConfig

SHAPE = "shape:"  # begins a reference to a shape that no public model has

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16"}
_SMOLLM2_135M = _LLAMA | {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_QWEN25_05B = _QWEN2 | {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
_LLAMA32_1B = _LLAMA | {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
}
_LLAMA31_8B = _LLAMA | {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131_072,
}
_LLAMA31_70B = _LLAMA31_8B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "intermediate_size": 28_672,
}
# The paper does not give the shape of its 52B model, and the model is not public. This one has 64
# layers of width 8192 and a vocabulary of 65,536; its gated MLP is as large as an ungated one of
# four times the width would be (3 x 8192 x 22,016 is about 2 x 8192 x 32,768).
_PAPER_52B = _LLAMA | {
    "vocab_size": 65_536,
    "hidden_size": 8192,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "intermediate_size": 22_016,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "Qwen/Qwen2.5-0.5B": _QWEN25_05B,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN25_05B,
    "meta-llama/Llama-3.2-1B": _LLAMA32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA32_1B,
    "meta-llama/Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA31_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA31_70B,
    f"{SHAPE}paper-52b": _PAPER_52B,
}


class Model(NamedTuple):
    """What a plan knows of a model."""

    config: ModelConfig
    parameters: int
    source: str  # where that was read, for people


def is_elsewhere(reference: str) -> bool:
    """Whether a reference is a hub id, or a mere shape: no folder of this machine is meant."""
    if reference.startswith(SHAPE):
        return True
    return not Path(reference).exists() and bool(checkpoints.HUB_ID.fullmatch(reference))


def read_elsewhere(reference: str) -> Model:
    """The shape of such a model: from the hub's cache if it is there, else from SHAPES.

    Nothing is downloaded.

    Raises:
        InputError: it is in neither.
    """
    from huggingface_hub import try_to_load_from_cache

    if not reference.startswith(SHAPE):
        cached = try_to_load_from_cache(reference, "config.json")
        if isinstance(cached, str):
            return read_folder(Path(cached).parent)
    if reference not in SHAPES:
        raise InputError(
            f"{reference}: expected a model in the hub's cache, or one whose shape is known "
            f"({', '.join(SHAPES)}); a dry run downloads nothing"
        )
    source = "the table of shapes (cai_jax/shapes.py)"
    return _model(SHAPES[reference], source)


def read_folder(folder: Path) -> Model:
    """The shape of a model folder, by its config.json."""
    from cai_jax.models import weights

    config, _ = weights.read_config(folder)
    return Model(config, inputs.parameter_count(folder), f"{folder}/config.json")


def _model(values: Mapping[str, Any], source: str) -> Model:
    from cai_jax.models import families

    config, preference_model = families.read_config(values, source)
    return Model(config, inputs.count_parameters(config, preference_model), source)
