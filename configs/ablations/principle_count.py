"""Ablation: from how many principles critiques draw (figure 6 of the paper).

    python -m cai_jax.run --config=configs/ablations/principle_count.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.

Two minutes of CPU time where programs are compiled, 1.7 GB. Expected (seed 0, held-out prompts,
oracle): harmless .70 with 16 principles, .53 with 8, .67 with 4, .29 with 2 and .21 with 1, each
+-.05.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import sweeps


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    sweeps.samples(config)
    cells = []
    for count in (16, 8, 4, 2, 1):
        sweeps.chains(config, f"chains_{count}", num_principles=count)
        cells.append(f"principles_{count}")
        sweeps.sl_cai(config, cells[-1], data=(f"chains_{count}", "helpful_samples"))
    return sweeps.finish(config, cells)
