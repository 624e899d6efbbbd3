"""Ablation: the weights of AI labels and of people's in the preference model.

    python -m cai_jax.run --config=configs/ablations/preference_mix.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two and a half minutes of CPU time where programs are compiled, 1.4 GB. Expected (seed 0, held-out
prompts, oracle): harmless .96 with three to one, .88 with one to one and .94 with the AI's labels
alone, each +-.04.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    sweeps.until_pairs(config)
    sweeps.feedback(config)
    cells = {"mix_3_to_1": (3.0, 1.0), "mix_1_to_1": (1.0, 1.0), "ai_alone": (1.0, 0.0)}
    for name, weights in cells.items():
        sweeps.preference(config, f"preference_{name}", weights=weights)
        sweeps.reinforced(config, name, f"preference_{name}")
    return sweeps.finish(config, list(cells), "preference_mix_3_to_1")
