"""How a training step computes a model: parameters stay float32, whatever the activations are."""

import dataclasses

from ml_collections import ConfigDict

from cai_jax.errors import InputError
from cai_jax.models.config import DTYPES, REMATS, ModelConfig


def default_config() -> ConfigDict:
    """The parameters that a training stage has beside its own."""
    config = ConfigDict()
    config.compute_dtype = ""  # "float32" or "bfloat16"; "": as the model's config.json says
    # What the backward pass computes again: "none", "dots" (all but matrix products), or "layer".
    config.remat = "none"
    return config


def check(config: ConfigDict) -> None:
    """Refuses unknown words.

    Raises:
        InputError: naming the parameter.
    """
    for name, known in (("compute_dtype", ("", *DTYPES)), ("remat", REMATS)):
        if config[name] not in known:
            raise InputError(
                f"{name}: expected one of {', '.join(map(repr, known))}, found {config[name]!r}"
            )


def computed(model: ModelConfig, config: ConfigDict) -> ModelConfig:
    """The same model, computed as `config` says; what is saved keeps the one given."""
    dtype = config.compute_dtype or model.dtype
    return dataclasses.replace(model, dtype=dtype, remat=config.remat)
