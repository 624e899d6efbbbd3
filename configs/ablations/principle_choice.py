"""Ablation: general principles, narrow ones, or both, in the labels.

    python -m cai_jax.run --config=configs/ablations/principle_choice.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two and a half minutes of CPU time where programs are compiled, 1.4 GB. Expected (seed 0, held-out
prompts, oracle): harmless .96 with all principles, .96 with the general ones and .83 with the
narrow ones, each +-.04.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    general = tuple(f"general-{number}" for number in range(1, 5))
    narrow = ("theft-poison-violence", "hacking-fraud-drugs", "racism-bullying-theft")
    cells = {"all": {}, "general": {"principles": general}, "narrow": {"principles": narrow}}
    sweeps.label_cells(config, cells)
    return sweeps.finish(config, list(cells), "preference_all")
