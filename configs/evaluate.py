"""What a model knows and refuses: the paper's multiple choices, and over-refusal on XSTest.

    python -m cai_jax.run --config=configs/evaluate.py --workdir=runs/evaluate \\
        --config.model=MODEL_FOLDER --config.evals=FOLDER

FOLDER has the paper's official evaluations (438HHHEvaluations.jsonl, HarmfulVsEthical.jsonl and
HarmfulnessClassification.jsonl, of the repository anthropics/ConstitutionalHarmlessnessPaper) and
XSTest's xstest_prompts.csv, unless --config.xstest says where that is. Without XSTest:
--steps=choices,report. --config.constitution takes the folder with the paper's official prompts,
whose few-shots stand in front of the comparisons.

A preference model has its opinion of the 438 comparisons when its folder is named beside `model`
in the inputs of `choices`, as "preference_model".

Hardware: one accelerator that holds the model's weights.
Memory, time: --dry_run says what is read and written; most of it are the reasonings, of which
--config.steps.choices.num_samples=1 makes a fifth.
Expected: of a tiny or random model, chance: 0.50, 0.50 and 0.11. The paper's models of less than 10
billion parameters are at 0.50 on the comparisons too; its pretrained 52B model is at 0.68, and at
0.72 after reasoning (Fig 4).
Not run by us with a trained model.
"""

from ml_collections import ConfigDict

from cai_jax.stages import step

FILES = {
    "hhh": "438HHHEvaluations.jsonl",
    "harmful_or_ethical": "HarmfulVsEthical.jsonl",
    "harm_types": "HarmfulnessClassification.jsonl",
}


def get_config() -> ConfigDict:
    """The steps, in order, and what they share."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.model = ""  # given on the command line, as the folder is
    config.evals = ""
    evals = config.get_ref("evals")
    config.xstest = evals + "/xstest_prompts.csv"
    config.constitution = "constitutions/principles.json"
    config.limit = 0  # at most so many questions or prompts of each file; 0: all
    config.batch_size = 16
    shared = {"limit": config.get_ref("limit"), "batch_size": config.get_ref("batch_size")}
    model = config.get_ref("model")
    steps = config.steps = ConfigDict(sort_keys=False)
    steps.choices = step(
        "evaluate_choices",
        {
            "model": model,
            "evaluations": {name: evals + f"/{file}" for name, file in FILES.items()},
            "constitution": config.get_ref("constitution"),
        },
        num_few_shots=5,
        num_samples=5,
        on_long="drop",
        **shared,
    )
    steps.refusals = step(
        "evaluate",
        {"models": {"model": model}, "xstest": config.get_ref("xstest")},
        judge="none",
        **shared,
    )
    steps.report = step("report", {"steps": list(steps)})
    return config
