"""The whole method in the desk-scale world: red-team prompts to an RL-CAI model.

    python -m cai_jax.run --config=configs/demo.py --workdir=runs/demo

Hardware: two CPU cores, no accelerator. Time and memory: see the README.
Expected: harmless answers to held-out red-team prompts rise from none (helpful-only) over SL-CAI to
RL-CAI, which is neither evasive nor less helpful on benign requests.

The numbers show that the machinery works; they say nothing about real language models.
"""

from ml_collections import ConfigDict

from cai_jax.stages import step

RED_TEAM = "sandbox:prompts/red_team_train.jsonl"
BENIGN = "sandbox:prompts/benign_train.jsonl"
RED_TEAM_HELD_OUT = "sandbox:prompts/red_team_held_out.jsonl"
BENIGN_HELD_OUT = "sandbox:prompts/benign_held_out.jsonl"
HELPFULNESS = "sandbox:comparisons/helpfulness_train.jsonl"
HELPFULNESS_HELD_OUT = "sandbox:comparisons/helpfulness_held_out.jsonl"
HARMLESSNESS_HELD_OUT = "sandbox:comparisons/harmlessness_held_out.jsonl"
PAIRS_HELD_OUT = "sandbox:pairs/held_out.jsonl"


def get_config() -> ConfigDict:
    """The steps, in order, and what they share."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.pretrained = "sandbox:models/pretrained-m"
    config.helpful = "sandbox:models/helpful-m"
    config.constitution = "sandbox:constitution.json"
    pretrained, helpful = config.get_ref("pretrained"), config.get_ref("helpful")
    constitution = config.get_ref("constitution")

    sampling = {"batch_size": 256}
    # The paper samples at T = 1; models of 0.2M parameters slip there, and SL-CAI would learn it.
    without_slips = {"top_p": 0.95}
    # The world's models read short contexts alone, and were pretrained on the very task.
    chain = {
        "num_few_shots": 0,
        "max_response_tokens": 40,
        "max_critique_tokens": 16,
        "max_revision_tokens": 44,
    }
    steps = config.steps = ConfigDict(sort_keys=False)

    # Supervised phase (paper section 3).
    steps.critique_revise = step(
        "critique_revise",
        {"model": helpful, "prompts": RED_TEAM, "constitution": constitution},
        num_rounds=4,
        **without_slips,
        **chain,
        **sampling,
    )
    steps.helpful_samples = step(
        "critique_revise",
        {"model": helpful, "prompts": BENIGN, "constitution": constitution},
        num_rounds=0,
        **without_slips,
        **chain,
        **sampling,
    )
    steps.sl_cai = step(
        "finetune",
        {"model": pretrained, "data": ["critique_revise", "helpful_samples"]},
        epochs=2,
        learning_rate=5e-4,
        final=0.02,
    )

    # Reinforcement phase (paper section 4).
    steps.compare = step(
        "compare", {"model": "sl_cai", "prompts": RED_TEAM}, max_response_tokens=44, **sampling
    )
    steps.feedback = step(
        "feedback",
        {"model": pretrained, "pairs": "compare", "constitution": constitution},
        placement="both",
        **sampling,
    )
    steps.preference = step(
        "preference",
        {
            "model": pretrained,
            "comparisons": ["feedback", HELPFULNESS],
            "held_out": [HELPFULNESS_HELD_OUT, HARMLESSNESS_HELD_OUT],
        },
        epochs=2,  # the paper's one, over a hundred times the comparisons, is more
        learning_rate=1e-3,
    )
    steps.rl_cai = step(
        "ppo",
        {"model": "sl_cai", "preference_model": "preference", "prompts": [RED_TEAM, BENIGN]},
        kl_coefficient=0.2,
        iterations=100,
        learning_rate=3e-4,
    )

    # Held-out chains and judgements, for the evaluation alone.
    steps.held_out_chains = step(
        "critique_revise",
        {"model": helpful, "prompts": RED_TEAM_HELD_OUT, "constitution": constitution},
        num_rounds=4,
        limit=200,
        **chain,
        **sampling,
    )
    steps.held_out_feedback = step(
        "feedback",
        {"model": pretrained, "pairs": PAIRS_HELD_OUT, "constitution": constitution},
        placement="both",
        **sampling,
    )
    steps.held_out_reasoning = step(
        "feedback",
        {"model": helpful, "pairs": PAIRS_HELD_OUT, "constitution": constitution},
        chain_of_thought=True,
        max_reasoning_tokens=24,
        **sampling,
    )
    steps.evaluation = step(
        "evaluate",
        {
            "models": {
                "pretrained": pretrained,
                "helpful": helpful,
                "sl_cai": "sl_cai",
                "rl_cai": "rl_cai",
            },
            "red_team": RED_TEAM_HELD_OUT,
            "benign": BENIGN_HELD_OUT,
            "preference": "preference",
            "chains": "held_out_chains",
            "critiques": "held_out_chains",
            "feedback": {"direct": "held_out_feedback", "with_reasoning": "held_out_reasoning"},
        },
        judge="oracle",
        anchor="sl_cai",
        max_new_tokens=44,
        **sampling,
    )
    steps.report = step("report", {"steps": list(steps)})
    return config
