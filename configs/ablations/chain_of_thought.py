"""Ablation: labels given directly, after one chain of thought, or after three.

    python -m cai_jax.run --config=configs/ablations/chain_of_thought.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two and a half minutes of CPU time where programs are compiled, 1.4 GB. Expected (seed 0, held-out
prompts, oracle): harmless .93 with direct labels, .74 after one reasoning and .79 after three, each
+-.05.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    cells = {
        "direct": {},
        "reasoned": {"chain_of_thought": True},
        "ensemble": {"chain_of_thought": True, "num_reasonings": 3},
    }
    sweeps.label_cells(config, cells)
    return sweeps.finish(config, list(cells), "preference_direct")
