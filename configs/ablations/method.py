"""Ablation: PPO, GRPO, RLOO, DPO, and SL on the best of eight responses.

    python -m cai_jax.run --config=configs/ablations/method.py --workdir=runs/sweep

Hardware: two CPU cores, no accelerator. Prints the table of its cells; the step `table` has it as
numbers and as a plot. Models, prompts and constitution are keys of the config. In the desk-scale
world the numbers say nothing about real language models.
"""

from ml_collections import ConfigDict

from cai_jax.laboratory import steps, sweeps
from cai_jax.stages import step


def get_config() -> ConfigDict:
    """One model a cell; what cells share is made once."""
    config = sweeps.base()
    sweeps.until_pairs(config)
    sweeps.feedback(config)
    sweeps.preference(config)
    sweeps.reinforced(config, "ppo")
    sweeps.reinforced(config, "grpo", advantage="group", samples_per_prompt=4)
    sweeps.reinforced(config, "rloo", advantage="leave_one_out")
    # Chosen on validation prompts: bolder, or with people's comparisons of helpfulness mixed in, it
    # breaks most answers of the desk-scale world. Real models take less still.
    config.steps.dpo = step(
        "dpo",
        {"model": "sl_cai", "comparisons": ["feedback"]},
        epochs=6,
        learning_rate=1e-4,
        beta=0.3,
    )
    prompts = [config.get_ref("red_team"), config.get_ref("benign")]
    config.steps.best = step(
        "best_of_n",
        {"model": "sl_cai", "preference_model": "preference", "prompts": prompts},
        num_samples=8,
        max_new_tokens=44,
        limit=384,
        **steps.SAMPLING,
    )
    sweeps.sl_cai(config, "best_of_8", data=("best",), epochs=6)
    return sweeps.finish(config, ["ppo", "grpo", "rloo", "dpo", "best_of_8"], "preference")
