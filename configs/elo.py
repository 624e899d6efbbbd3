"""Two models against each other: their answers in pairs, judged by a feedback model and by people.

    python -m cai_jax.run --config=configs/elo.py --workdir=runs/elo \\
        --config.model=MODEL_FOLDER --config.baseline=MODEL_FOLDER --config.judge=MODEL_FOLDER \\
        --config.red_team=red_team.jsonl --config.benign=benign.jsonl

The steps harmlessness_pairs and helpfulness_pairs each write blind.csv and blind.jsonl for people,
which do not say whose answers they are; configs/votes.py reads what people filled in. A preference
model is one more judge when its folder is named in the inputs of `elo`, as "preference_model"; more
models go into the inputs of `answers`.

Hardware: one accelerator that holds the weights of one model.
Memory, time: --dry_run says what is read and written.
Expected: Elo of `model` against `baseline` (0), with intervals. A judge that cannot tell the
answers apart puts both near 0, and so does one that always prefers what stands first.
Not run by us with trained models.
"""

from ml_collections import ConfigDict

from cai_jax.stages import step


def get_config() -> ConfigDict:
    """The steps, in order, and what they share."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    for name in ("model", "baseline", "judge", "red_team", "benign"):
        config[name] = ""  # given on the command line
    config.limit = 0  # at most so many prompts of each file; 0: all
    config.batch_size = 32
    sampling = {"batch_size": config.get_ref("batch_size")}
    judge = config.get_ref("judge")
    steps = config.steps = ConfigDict(sort_keys=False)
    steps.answers = step(
        "evaluate",
        {
            "models": {"model": config.get_ref("model"), "baseline": config.get_ref("baseline")},
            "red_team": config.get_ref("red_team"),
            "benign": config.get_ref("benign"),
        },
        judge="none",
        limit=config.get_ref("limit"),
        **sampling,
    )
    questions = {
        "harmlessness": ("red_team", "constitutions/principles.json"),
        "helpfulness": ("benign", "constitutions/helpfulness.json"),
    }
    for name, (prompt_set, constitution) in questions.items():
        steps[f"{name}_pairs"] = step("pair_answers", {"answers": "answers"}, prompt_set=prompt_set)
        steps[f"{name}_labels"] = step(
            "feedback",
            {"model": judge, "pairs": f"{name}_pairs", "constitution": constitution},
            placement="both",
            on_long="drop",
            **sampling,
        )
    steps.elo = step(
        "elo",
        {
            "pairs": [f"{name}_pairs" for name in questions],
            "comparisons": [f"{name}_labels" for name in questions],
        },
        anchor="baseline",
        **sampling,
    )
    steps.report = step("report", {"steps": list(steps)})
    return config
