"""The method on real prompts: any model folder of Hugging Face, the red-team prompts of HH-RLHF.

    python -m cai_jax.run --config=configs/hh.py --workdir=runs/hh \\
        --config.model=MODEL_FOLDER --config.prompts=harmless-base/train.jsonl.gz \\
        --config.constitution=PRINCIPLES

The prompts are any file that the README lists, or a split of a TFDS data set, as in
--config.prompts=tfds:hh_rlhf/harmless-base:train. PRINCIPLES is a file like
constitutions/principles.json, or the folder with the paper's official prompts. Add --dry_run to see
what each step takes, --config.limit=100 to try it on a few prompts.

Hardware: one accelerator that holds the model and its optimizer's state in float32, or a mesh of
them: --config.mesh.fsdp=8.
Memory: computed: 20 bytes a parameter to train, 24 in PPO, and activations; --dry_run has them, for
this model and mesh.
Time: computed: by --dry_run too, with --config.hardware=h100 (or another of cai_jax/costs.py).
Expected: whatever the model can do. A good helpful-only model gives harmless revisions; a tiny or
random one gives nonsense through the same machinery.

The paper's models are two: config.helpful_model answers, criticises and revises, and reasons;
config.model is finetuned, and judges. By default they are one. It also has the pretrained model
write most prompts (configs/red_team.py), and mixes helpful samples and human helpfulness
comparisons in (configs/paper_52b.py).

The other configs here are this one for particular models: they call `get_config` with what differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cai_jax.stages import step

SAMPLING = ("red_team", "critique_revise", "compare", "feedback", "evaluate")


def get_config(
    model: str = "",
    helpful_model: str = "",
    hardware: str = "",
    mesh: Sequence[int] = (1, 1, 1),
    sampling_mesh: Sequence[int] | None = None,
    limit: int = 0,
    generated_prompts: int = 0,
    mix_helpfulness: bool = False,
    batch_size: int = 32,
    rows: int = 32,
    pairs: int = 32,
    finetune: Mapping[str, Any] | None = None,
    ppo: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """The steps, in order, and what they share.

    Args:
        model: the pretrained model; "": given on the command line, as the prompts are.
        helpful_model: "": the same.
        hardware: a key of HARDWARE in cai_jax/costs.py; for --dry_run alone.
        mesh: devices along data, fsdp and tensor.
        sampling_mesh: the same, for steps that train nothing: they read all weights for each token,
            and wait for the network where fsdp alone splits them. None: as `mesh`.
        limit: at most so many prompts of each source; 0: all.
        generated_prompts: how many red-team prompts the pretrained model writes besides (section
            3.2 of the paper); 0: none.
        mix_helpfulness: whether to learn from helpful samples and human helpfulness comparisons
            besides (sections 3.2 and 4.2), of config.helpful_prompts and helpful_comparisons.
        batch_size: texts sampled or scored at a time.
        rows: of a batch of SL-CAI.
        pairs: of a batch of the preference model.
        finetune: more parameters of the step that makes SL-CAI.
        ppo: more of the one that makes RL-CAI.
    """
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = _mesh(mesh)
    config.sampling_mesh = config.mesh if sampling_mesh is None else _mesh(sampling_mesh)
    config.hardware = hardware
    config.model = model
    config.helpful_model = helpful_model or config.get_ref("model")
    config.prompts = ""
    config.evaluation_prompts = config.get_ref("prompts")  # better: others, of harmless-base/test
    config.constitution = "constitutions/principles.json"
    config.limit = limit
    config.batch_size = batch_size
    pretrained, helpful = config.get_ref("model"), config.get_ref("helpful_model")
    prompts, constitution = config.get_ref("prompts"), config.get_ref("constitution")
    sampling = {"batch_size": config.get_ref("batch_size")}
    taken = {"limit": config.get_ref("limit"), "on_long": "drop"}
    steps = config.steps = ConfigDict(sort_keys=False)

    sources, data, comparisons = [prompts], ["critique_revise"], ["feedback"]
    rl_prompts = sources
    if generated_prompts:
        steps.red_team = step(
            "red_team",
            {"model": pretrained, "prompts": prompts},
            num_prompts=generated_prompts,
            **sampling,
        )
        sources = rl_prompts = [prompts, "red_team"]

    # Supervised phase (paper section 3).
    steps.critique_revise = step(
        "critique_revise",
        {"model": helpful, "prompts": _one_or_all(sources), "constitution": constitution},
        num_rounds=4,
        num_few_shots=5,
        **taken,
        **sampling,
    )
    if mix_helpfulness:
        config.helpful_prompts = config.helpful_comparisons = ""
        benign = config.get_ref("helpful_prompts")
        steps.helpful_samples = step(
            "critique_revise",
            {"model": helpful, "prompts": [benign, benign]},  # two samples of each
            num_rounds=0,
            **taken,
            **sampling,
        )
        data.append("helpful_samples")
        comparisons.append(config.get_ref("helpful_comparisons"))
        rl_prompts = [*sources, benign]
    steps.sl_cai = step(
        "finetune",
        {"model": pretrained, "data": data},
        learning_rate=1e-5,
        schedule="constant",
        sequence_length=1024,
        rows=rows,
        **(finetune or {}),
    )

    # Reinforcement phase (paper section 4).
    steps.compare = step(
        "compare", {"model": "sl_cai", "prompts": _one_or_all(sources)}, **taken, **sampling
    )
    steps.feedback = step(
        "feedback",
        {"model": pretrained, "pairs": "compare", "constitution": constitution},
        num_few_shots=5,
        on_long="drop",
        **sampling,
    )
    steps.preference = step(
        "preference",
        {"model": pretrained, "comparisons": comparisons},
        learning_rate=1e-5,
        sequence_length=1024,
        pairs=pairs,
    )
    of_ppo = {
        "learning_rate": 1e-6,
        "iterations": 500,
        "max_prompt_tokens": 512,
        "max_new_tokens": 128,
        "kl_coefficient": 0.001,
    }
    steps.rl_cai = step(
        "ppo",
        {"model": "sl_cai", "preference_model": "preference", "prompts": rl_prompts},
        **of_ppo | dict(ppo or {}),
    )

    steps.evaluation = step(
        "evaluate",
        {
            "models": {"model": pretrained, "sl_cai": "sl_cai", "rl_cai": "rl_cai"},
            "red_team": config.get_ref("evaluation_prompts"),
            "preference_model": "preference",
        },
        judge="none",  # or "preference_model": an opinion, that of the model trained here
        limit=200,
        **sampling,
    )
    for of_step in steps.values():
        if of_step.kind in SAMPLING:
            of_step.mesh = config.sampling_mesh
    steps.report = step("report", {"steps": list(steps)})
    return config


def _mesh(sizes: Sequence[int]) -> ConfigDict:
    return ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def _one_or_all(sources: list[Any]) -> Any:
    return sources if len(sources) > 1 else sources[0]
