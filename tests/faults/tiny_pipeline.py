"""The method's steps that sample and train, on the desk-scale world's smallest models: seconds."""

from ml_collections import ConfigDict

from cai_jax.stages import step

PROMPTS = "sandbox:prompts/red_team_train.jsonl"


def get_config() -> ConfigDict:
    """Every training step has more checkpoints than are kept."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    steps = config.steps = ConfigDict(sort_keys=False)
    constitution = "sandbox:constitution.json"
    pretrained = "sandbox:models/pretrained-xs"
    often = {"every": 2}
    steps.revisions = step(
        "critique_revise",
        {"model": "sandbox:models/helpful-xs", "prompts": PROMPTS, "constitution": constitution},
        num_rounds=1,
        num_few_shots=0,
        limit=16,
        max_response_tokens=16,
        max_critique_tokens=8,
        max_revision_tokens=16,
        batch_size=8,
    )
    steps.sl_cai = step(
        "finetune",
        {"model": pretrained, "data": "revisions"},
        revisions=(1,),
        epochs=16,
        rows=4,
        sequence_length=96,
        log_every=3,
        checkpoints=often,
    )
    steps.compare = step(
        "compare",
        {"model": "sl_cai", "prompts": PROMPTS},
        limit=16,
        max_response_tokens=16,
        batch_size=8,
    )
    steps.feedback = step(
        "feedback",
        {"model": pretrained, "pairs": "compare", "constitution": constitution},
        batch_size=8,
    )
    steps.preference = step(
        "preference",
        {"model": pretrained, "comparisons": "feedback"},
        epochs=4,
        pairs=4,
        log_every=3,
        checkpoints=often,
    )
    steps.rl_cai = step(
        "ppo",
        {"model": "sl_cai", "preference_model": "preference", "prompts": PROMPTS},
        iterations=12,
        prompts_per_iteration=4,
        max_new_tokens=8,
        score_normalization="running",
        kl_target=0.1,
        record_every=2,
        snapshot_every=4,
        checkpoints=often,
    )
    return config
