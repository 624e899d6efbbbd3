"""All runs behind the paper's figures in the desk-scale world, each trained once: full scale.

    python -m cai_jax.reproduce --workdir=runs/figures --scale=full
    python -m cai_jax.run --config=configs/reproduce_full.py --workdir=runs/one-seed

Hardware: two CPU cores, no accelerator.
Expected: see docs/claims.md, which says what is tested; `reproduce` says what held.

The numbers show how the method behaves in a toy world; they say nothing about real language models.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import steps


def get_config() -> ConfigDict:
    """The steps of cai_jax/laboratory/steps.py."""
    return steps.get_config("full")
