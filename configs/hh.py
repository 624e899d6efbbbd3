"""The method on real prompts: any Llama folder of Hugging Face, the red-team prompts of HH-RLHF.

    python -m cai_jax.run --config=configs/hh.py --workdir=runs/hh \\
        --config.model=MODEL_FOLDER --config.prompts=harmless-base/train.jsonl.gz \\
        --config.constitution=PRINCIPLES

The prompts are any file that the README lists, or a split of a TFDS data set, as in
--config.prompts=tfds:hh_rlhf/harmless-base:train. PRINCIPLES is a file like
constitutions/principles.json, or the folder with the paper's official prompts. Add --dry_run to see
what each step takes, --config.limit=100 to try it on a few prompts.

Hardware: one accelerator that holds the model and its optimizer's state in float32 (16 bytes a
parameter), or a mesh of them: --config.mesh.fsdp=8.
Expected: whatever the model can do. A good helpful-only model gives harmless revisions; a tiny or
random one gives nonsense through the same machinery.

The paper's models are two: config.helpful_model answers, criticises and revises, and reasons;
config.model is finetuned, and judges. By default they are one. It also mixes helpful samples and
human helpfulness comparisons in, as configs/demo.py does: add a step and name more `data` and
`comparisons`.
"""

from ml_collections import ConfigDict

from cai_jax.stages import step


def get_config() -> ConfigDict:
    """The steps, in order, and what they share."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.model = ""  # given on the command line, as the prompts are
    config.helpful_model = config.get_ref("model")
    config.prompts = ""
    config.evaluation_prompts = config.get_ref("prompts")  # better: others, of harmless-base/test
    config.constitution = "constitutions/principles.json"
    config.limit = 0  # at most so many prompts; 0: all
    config.batch_size = 32  # texts sampled or scored at a time
    model, helpful = config.get_ref("model"), config.get_ref("helpful_model")
    prompts, constitution = config.get_ref("prompts"), config.get_ref("constitution")
    sampling = {"batch_size": config.get_ref("batch_size")}
    taken = {"limit": config.get_ref("limit"), "on_long": "drop"}
    steps = config.steps = ConfigDict(sort_keys=False)

    # Supervised phase (paper section 3).
    steps.critique_revise = step(
        "critique_revise",
        {"model": helpful, "prompts": prompts, "constitution": constitution},
        num_rounds=4,
        num_few_shots=5,
        **taken,
        **sampling,
    )
    steps.sl_cai = step(
        "finetune",
        {"model": model, "data": ["critique_revise"]},
        learning_rate=1e-5,
        schedule="constant",
        sequence_length=1024,
    )

    # Reinforcement phase (paper section 4).
    steps.compare = step("compare", {"model": "sl_cai", "prompts": prompts}, **taken, **sampling)
    steps.feedback = step(
        "feedback",
        {"model": model, "pairs": "compare", "constitution": constitution},
        num_few_shots=5,
        on_long="drop",
        **sampling,
    )
    steps.preference = step(
        "preference",
        {"model": model, "comparisons": ["feedback"]},
        learning_rate=1e-5,
        sequence_length=1024,
    )
    steps.rl_cai = step(
        "ppo",
        {"model": "sl_cai", "preference_model": "preference", "prompts": [prompts]},
        learning_rate=1e-6,
        iterations=500,
        max_prompt_tokens=512,
        max_new_tokens=128,
        kl_coefficient=0.001,
    )

    steps.evaluation = step(
        "evaluate",
        {
            "models": {"model": model, "sl_cai": "sl_cai", "rl_cai": "rl_cai"},
            "red_team": config.get_ref("evaluation_prompts"),
            "preference_model": "preference",
        },
        judge="none",  # or "preference_model": an opinion, that of the model trained here
        limit=200,
        **sampling,
    )
    steps.report = step("report", {"steps": list(steps)})
    return config
