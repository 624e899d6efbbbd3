"""Ablation: how many revisions SL-CAI learns: SL-CAI-1 to SL-CAI-4.

    python -m cai_jax.run --config=configs/ablations/revisions.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

A minute of CPU time where programs are compiled, 1.3 GB. Expected (seed 0, held-out prompts,
oracle): harmless .69 after all four revisions, .61 after three, .52 after two and .36 after one,
each +-.05.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    sweeps.samples(config)
    sweeps.chains(config)
    cells = []
    for last in (4, 3, 2, 1):
        cells.append(f"sl_cai_{last}")
        # About as many updates each.
        epochs = round(15 / (last + 1))
        sweeps.sl_cai(config, cells[-1], revisions=tuple(range(1, last + 1)), epochs=epochs)
    return sweeps.finish(config, cells)
