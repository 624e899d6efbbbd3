"""Ablation: soft or hard labels.

    python -m cai_jax.run --config=configs/ablations/label_kind.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two minutes of CPU time where programs are compiled, 1.3 GB. Expected (seed 0, held-out prompts,
oracle): harmless .91 with soft labels and .85 with hard ones, each +-.03.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    cells = {"soft": {}, "hard": {"labels": "hard"}}
    sweeps.label_cells(config, cells)
    return sweeps.finish(config, list(cells), "preference_soft")
