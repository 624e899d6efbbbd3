"""Ablation: how far labels after a chain of thought are clamped.

    python -m cai_jax.run --config=configs/ablations/clamp.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two and a half minutes of CPU time where programs are compiled, 1.4 GB. Expected (seed 0, held-out
prompts, oracle): harmless .81 with 40..60, .86 with 20..80 and .89 without a clamp, each +-.04.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    ranges = {"clamp_40_60": (0.4, 0.6), "clamp_20_80": (0.2, 0.8), "no_clamp": (0.0, 1.0)}
    cells = {
        name: {"chain_of_thought": True, "reasoning_clamp": ends} for name, ends in ranges.items()
    }
    sweeps.label_cells(config, cells)
    return sweeps.finish(config, list(cells), "preference_clamp_40_60")
