"""Rotary positions in a `config.json`: `rope_parameters` of transformers 5, or older options."""

import math
from collections.abc import Mapping
from typing import Any

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.models.families.options import Options

# The keys that each kind reads; another one would change the frequencies in a way unknown here.
KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    ),
}


def read(options: Options, theta: str = "rope_theta") -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a `ModelConfig`.

    Args:
        options: of the file.
        theta: the option of the base where `rope_parameters` has none.
    """
    # Where both are there, transformers takes the old one.
    name = "rope_scaling" if options.section("rope_scaling") else "rope_parameters"
    parameters = options.section(name)
    found = parameters.get("rope_theta", options.values.get(theta))
    return {
        "rope_theta": options.a_positive("rope_theta", found),
        "rope_scaling": scaling(options, name, parameters),
    }


def scaling(options: Options, name: str, parameters: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that `parameters`, the option `name`, ask for; None for the plain kind."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in KEYS:
        raise options.error(f"{name}.rope_type", f"one of {', '.join(KEYS)}", kind)
    known = (*KEYS[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor")
    for key, value in parameters.items():
        if key not in known and value is not None:
            raise options.unsupported(f"{name}.{key}", None, value)

    def positive(key: str, default: float | None = None) -> float:
        return options.a_positive(f"{name}.{key}", parameters.get(key), default)

    if kind == "default":
        return None
    factor = positive("factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    original = positive("original_max_position_embeddings", options.values[LENGTH_OF_TEXTS])
    if kind == "llama3":
        low, high = positive("low_freq_factor"), positive("high_freq_factor")
        return RopeScaling(kind, factor, int(original), low_frequency=low, high_frequency=high)
    return RopeScaling(
        kind,
        factor,
        int(original),
        beta_fast=positive("beta_fast", 32.0),
        beta_slow=positive("beta_slow", 1.0),
        truncate=parameters.get("truncate", True) is not False,
        attention_factor=positive("attention_factor", _attention_factor(factor, parameters)),
    )


LENGTH_OF_TEXTS = "max_position_embeddings"


def _attention_factor(factor: float, parameters: Mapping[str, Any]) -> float:
    """By how much yarn sharpens attention where the file does not say it (Peng et al. 2023)."""
    growth = math.log(max(factor, 1.0))
    scale, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and all_dims:
        return (0.1 * scale * growth + 1) / (0.1 * all_dims * growth + 1)
    return 0.1 * growth + 1


def write(config: ModelConfig) -> dict[str, Any]:
    """The options of the rotary positions, for transformers 5 and 4."""
    parameters = written_scaling(config.rope_scaling)
    values: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_parameters": {**parameters, "rope_theta": config.rope_theta},
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = parameters
    return values


def written_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_parameters` without the base."""
    if scaling is None:
        return {"rope_type": "default"}
    values = {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_positions,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        "attention_factor": scaling.attention_factor,
    }
    return {
        "rope_type": scaling.kind,
        **{k: v for k, v in values.items() if k in KEYS[scaling.kind]},
    }
