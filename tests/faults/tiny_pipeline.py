"""Every step that has a model, with the desk-scale world's smallest ones: seconds when compiled.

Blocks are of a few records, so that there is something to go on from, and every training has more
checkpoints than are kept.
"""

import json

import forking
from ml_collections import ConfigDict

from cai_jax import stages
from cai_jax.data.schema import Turn
from cai_jax.stages import step
from cai_jax.text.prompts import multiple_choice

PROMPTS = "sandbox:prompts/red_team_train.jsonl"
BENIGN = "sandbox:prompts/benign_train.jsonl"
HELPFUL, PRETRAINED = "sandbox:models/helpful-xs", "sandbox:models/pretrained-xs"
BLOCKS = {
    **dict.fromkeys(("critique_revise", "compare", "feedback", "evaluate"), {"BLOCK": 8}),
    "best_of_n": {"BLOCK": 16},
    "red_team": {"SMALLEST_BLOCK": 8, "LARGEST_BLOCK": 8},
}
MODULES = (
    *("jax.numpy", "optax", "grain", "transformers", "tokenizers", "orbax.checkpoint"),
    *("cai_jax.core.training", "cai_jax.algorithms.ppo", "cai_jax.models.weights"),
    *("cai_jax.generation.generate", "cai_jax.generation.score", "cai_jax.generation.rollout"),
    *(f"cai_jax.stages.{kind}" for kind in stages.kinds()),
)
QUESTIONS = "questions.jsonl"


def write_questions(path):
    """Questions with two answers, as `data/choices.py` reads them."""
    lines = [
        {
            "prompt": multiple_choice(
                [Turn("human", f"tell me about the {word}.")], "choose.", "the bike.", "the boss."
            ),
            "corrects": [" (A)"],
            "incorrects": [" (B)"],
        }
        for word in ("library", "teacher", "bike", "garden")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def get_config() -> ConfigDict:
    """All steps, in an order in which each reads what is there."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    steps = config.steps = ConfigDict(sort_keys=False)
    constitution = {"constitution": "sandbox:constitution.json"}
    often = {"log_every": 3, "checkpoints": {"every": 2}}
    sampled = {"limit": 24, "max_response_tokens": 16, "batch_size": 8}
    steps.more_prompts = step(
        "red_team",
        {"model": PRETRAINED, "prompts": PROMPTS},
        format="turns",
        num_prompts=16,
        num_few_shots=2,
        max_prompt_tokens=24,
        similarity=1.0,
        batch_size=8,
    )
    steps.revisions = step(
        "critique_revise",
        {"model": HELPFUL, "prompts": PROMPTS, **constitution},
        num_rounds=1,
        num_few_shots=0,
        max_critique_tokens=8,
        max_revision_tokens=16,
        **sampled,
    )
    steps.sl_cai = step(
        "finetune",
        {"model": PRETRAINED, "data": "revisions"},
        revisions=(1,),
        epochs=12,
        rows=4,
        sequence_length=96,
        **often,
    )
    steps.pairs = step("compare", {"model": "sl_cai", "prompts": PROMPTS}, **sampled)
    steps.labels = step(
        "feedback", {"model": PRETRAINED, "pairs": "pairs", **constitution}, batch_size=8
    )
    learned = {"model": PRETRAINED, "comparisons": "labels"}
    steps.preference = step("preference", learned, epochs=4, pairs=4, **often)
    steps.direct = step("dpo", learned, epochs=4, pairs=4, learning_rate=3e-4, **often)
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
        checkpoints=often["checkpoints"],
    )
    steps.best = step(
        "best_of_n",
        {"model": "sl_cai", "preference_model": "preference", "prompts": PROMPTS},
        num_samples=2,
        max_new_tokens=8,
        limit=24,
        batch_size=8,
    )
    steps.scores = step(
        "score_revisions",
        {"chains": {"chains": "revisions"}, "preference_model": {"pm": "preference"}},
        num_resamples=100,
    )
    steps.choices = step(
        "evaluate_choices",
        {"model": "sl_cai", "evaluations": {"one": QUESTIONS, "two": QUESTIONS}},
        modes=("zero_shot", "chain_of_thought"),
        max_reasoning_tokens=8,
        num_resamples=100,
    )
    steps.evaluation = step(
        "evaluate",
        {
            "models": {"sl": "sl_cai", "rl": "rl_cai"},
            "red_team": PROMPTS,
            "benign": BENIGN,
            "preference_model": "preference",
        },
        judge="preference_model",
        limit=16,
        max_new_tokens=16,
        num_resamples=100,
        batch_size=8,
    )
    return config


def load(kind):
    """The module of a kind of step, with small blocks."""
    stage = stages.load_stage(kind)
    for name, value in BLOCKS.get(kind, {}).items():
        setattr(stage, name, value)
    return stage


if __name__ == "__main__":
    forking.main(load, MODULES)
