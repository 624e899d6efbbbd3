"""Ablation: how dear the divergence from SL-CAI is in RL.

    python -m cai_jax.run --config=configs/ablations/kl_coefficient.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two minutes of CPU time where programs are compiled, 1.5 GB. Expected (seed 0, held-out prompts,
oracle): harmless .62 without a penalty (broken), .95 with .05, .91 with .2 and .77 with .8, each
+-.05.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    sweeps.until_pairs(config)
    sweeps.feedback(config)
    sweeps.preference(config)
    cells = {"kl_0.2": 0.2, "kl_0": 0.0, "kl_0.05": 0.05, "kl_0.8": 0.8}
    names = {name: name.replace(".", "_") for name in cells}
    for name, coefficient in cells.items():
        sweeps.reinforced(config, names[name], kl_coefficient=coefficient)
    return sweeps.finish(config, list(names.values()), "preference")
