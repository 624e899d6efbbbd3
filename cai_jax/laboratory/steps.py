"""The steps behind all figures: every run once, in the desk-scale world, shared by what reads it.

What has no size in its name is of size m. See docs/claims.md for what the baselines are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cai_jax.stages import step

SIZES = ("xs", "s", "m")
NUM_PRINCIPLES = (1, 2, 4, 8, 16)
GENERAL = ("general-1", "general-2", "general-3", "general-4")  # principles that cover every harm
CONSTITUTION = "sandbox:constitution.json"
# As in the paper, critiques and revisions have principles of their own, more of them general.
REVISIONS = "sandbox:laboratory/revisions.json"
HELPFULNESS = "sandbox:comparisons/helpfulness_train.jsonl"
HELD_OUT_COMPARISONS = [
    "sandbox:comparisons/helpfulness_held_out.jsonl",
    "sandbox:comparisons/harmlessness_held_out.jsonl",
]
# All counts are multiples of this one, so that all steps of a kind compile the same programs.
SAMPLING: dict[str, Any] = {"batch_size": 128}
# As in configs/demo.py: the world's models read short contexts, and slip at T = 1.
CHAIN: dict[str, Any] = {
    "num_few_shots": 0,
    "max_response_tokens": 40,
    "max_critique_tokens": 16,
    "max_revision_tokens": 44,
    **SAMPLING,
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything; the sizes of figure 3 beside m, whose every run is made anyway."""

    prompts: int  # red-team prompts with chains, and benign ones with samples
    epochs: int  # of SL-CAI; one, as in the paper
    learning_rate: float
    pairs: int  # compared, and judged by AI or people
    preference_epochs: int
    iterations: int  # of RL
    snapshot_every: int
    held_out: int  # prompts of an evaluation, of each set
    held_out_chains: int
    held_out_pairs: int
    sizes: tuple[str, ...]


SCALES = {
    "quick": Scale(384, 1, 8e-4, 512, 2, 40, 10, 256, 128, 512, ("s",)),
    "full": Scale(1152, 1, 5e-4, 1152, 2, 100, 20, 384, 256, 512, ("xs", "s")),
}


def prompts(kind: str, split: str) -> str:
    """The file of the world's prompts of a kind, "red_team" or "benign"."""
    # The results of a first world have been read; what is held out now was drawn anew.
    folder = "laboratory/prompts" if split == "held_out" else "prompts"
    return f"sandbox:{folder}/{kind}_{split}.jsonl"


def get_config(scale: str = "quick", evaluated: str = "held_out") -> ConfigDict:
    """The config with all steps, in order.

    Args:
        scale: of SCALES.
        evaluated: the split that models answer in evaluations; "validation" to choose settings by.
    """
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.steps = ConfigDict(sort_keys=False)
    of = SCALES[scale]
    for size in ("m", *of.sizes):
        for name, one in training(of, size).items():
            config.steps[name] = one
    steps: dict[str, ConfigDict] = variants(of)
    for size in (size for size in SIZES if size not in ("m", *of.sizes)):
        steps |= people(of, size) | human_preference(of, size, "hh")
    steps |= readings(of, evaluated) | evaluations(of, evaluated)
    for name, one in steps.items():
        config.steps[name] = one
    return config


def named(name: str, size: str) -> str:
    """The step of this name at a size."""
    return name if size == "m" else f"{name}_{size}"


def pretrained(size: str) -> str:
    """The model that all training of a size begins with."""
    return f"sandbox:laboratory/models/pretrained-{size}"


def helpful(size: str) -> str:
    """The helpful-only model of a size, which criticises, revises and reasons."""
    return f"sandbox:laboratory/models/helpful-{size}"


def training(of: Scale, size: str) -> dict[str, ConfigDict]:
    """SL-CAI, RL-CAI with and without CoT, and both baselines, at a size."""
    asked = {"model": helpful(size), "constitution": REVISIONS}
    chains, samples, sl_cai = (named(n, size) for n in ("chains", "helpful_samples", "sl_cai"))
    steps = {
        chains: step(
            "critique_revise",
            asked | {"prompts": prompts("red_team", "train")},
            num_rounds=4,
            limit=of.prompts,
            top_p=0.95,
            **CHAIN,
        ),
        samples: step(
            "critique_revise",
            asked | {"prompts": prompts("benign", "train")},
            num_rounds=0,
            limit=of.prompts,
            top_p=0.95,
            **CHAIN,
        ),
        sl_cai: finetune(of, size, (1, 2, 3, 4)),
        named("compare", size): compare(of, sl_cai, "red_team"),
    }
    steps |= reinforced(of, size, "", feedback=feedback(of, size))
    steps |= reinforced(of, size, "_cot", feedback=feedback(of, size, chain_of_thought=True))
    steps |= people(of, size)
    for name in ("hh", "helpful"):
        steps |= human_preference(of, size, name)
        steps[named(f"{name}_rlhf", size)] = reinforce(
            of, pretrained(size), named(f"{name}_preference", size)
        )
    return steps


def variants(of: Scale) -> dict[str, ConfigDict]:
    """What the ablations among the claims compare RL-CAI with, all of size m."""
    steps = {f"sl_cai_{n}": finetune(of, "m", tuple(range(1, n + 1))) for n in (1, 2, 3)}
    changed: dict[str, dict[str, Any]] = {
        "_hard": {"labels": "hard"},
        "_cot_20_80": {"chain_of_thought": True, "reasoning_clamp": (0.2, 0.8)},
        "_cot_free": {"chain_of_thought": True, "reasoning_clamp": (0.0, 1.0)},
        "_single": {"num_principles": 1},
    }
    for name, changes in changed.items():
        steps |= reinforced(of, "m", name, feedback=feedback(of, "m", **changes))
    # Chosen on validation prompts of seed 0. With people's comparisons of helpfulness mixed in, or
    # bolder, DPO breaks most answers; three times the epochs, as for people's labels alone.
    steps["dpo"] = step(
        "dpo",
        {"model": "sl_cai", "comparisons": ["feedback"]},
        epochs=3 * of.preference_epochs,
        learning_rate=1e-4,
        beta=0.3,
    )
    steps["rl_cai_overtrained"] = reinforce(
        of, "sl_cai", "preference", kl_coefficient=0.0, iterations=2 * of.iterations
    )
    # How much the start decides.
    steps["hh_from_sl_cai"] = reinforce(of, "sl_cai", "hh_preference")
    steps["rl_cai_from_pretrained"] = reinforce(of, pretrained("m"), "preference")
    return steps | human_preference(of, "m", "harmless")


def finetune(of: Scale, size: str, revisions: tuple[int, ...]) -> ConfigDict:
    """SL-CAI on these revisions."""
    data = [named("chains", size), named("helpful_samples", size)]
    # As many updates for fewer revisions.
    epochs = round(of.epochs * 5 / (len(revisions) + 1))
    return step(
        "finetune",
        {"model": pretrained(size), "data": data},
        revisions=revisions,
        epochs=epochs,
        learning_rate=of.learning_rate,
        final=0.02,
    )


def compare(of: Scale, model: str, kind: str) -> ConfigDict:
    """Two responses to each prompt."""
    return step(
        "compare",
        {"model": model, "prompts": prompts(kind, "train")},
        max_response_tokens=44,
        max_tries=1,  # what is said twice is left out
        limit=of.pairs,
        **SAMPLING,
    )


def feedback(of: Scale, size: str, **changes: Any) -> ConfigDict:
    """AI labels of SL-CAI's pairs; with reasoning they come from the helpful-only model."""
    reasons = changes.get("chain_of_thought", False)
    model = helpful(size) if reasons else pretrained(size)
    inputs = {"model": model, "pairs": named("compare", size), "constitution": CONSTITUTION}
    asked: dict[str, Any] = {"max_reasoning_tokens": 24} if reasons else {"placement": "both"}
    return step("feedback", inputs, **asked, **SAMPLING, **changes)


def reinforced(
    of: Scale, size: str, variant: str, *, feedback: ConfigDict
) -> dict[str, ConfigDict]:
    """RL-CAI by some feedback: labels, preference model and policy."""
    labels, judge, policy = (
        named(f"{name}{variant}", size) for name in ("feedback", "preference", "rl_cai")
    )
    return {
        labels: feedback,
        # At quick scale there are six times as many of people's.
        judge: preference(of, size, [labels, HELPFULNESS], weights=(3.0, 1.0)),
        policy: reinforce(of, named("sl_cai", size), judge),
    }


def preference(of: Scale, size: str, comparisons: list[str], **changes: Any) -> ConfigDict:
    """A preference model; what it is measured by trains nothing."""
    return step(
        "preference",
        {
            "model": pretrained(size),
            "comparisons": comparisons,
            "held_out": list(HELD_OUT_COMPARISONS),
        },
        learning_rate=1e-3,
        **({"epochs": of.preference_epochs} | changes),
    )


def reinforce(of: Scale, model: str, judge: str, **changes: Any) -> ConfigDict:
    """PPO against a preference model, from a model that is the reference too."""
    inputs = {
        "model": model,
        "preference_model": judge,
        "prompts": [prompts("red_team", "train"), prompts("benign", "train")],
    }
    settings: dict[str, Any] = {
        "kl_coefficient": 0.2,
        "iterations": of.iterations,
        "learning_rate": 3e-4,
    }
    return step("ppo", inputs, **(settings | changes), snapshot_every=of.snapshot_every)


def people(of: Scale, size: str) -> dict[str, ConfigDict]:
    """People's labels of the pretrained model's answers."""
    red_team, benign = named("people_red_team", size), named("people_benign", size)
    return {
        red_team: compare(of, pretrained(size), "red_team"),
        benign: compare(of, pretrained(size), "benign"),
        named("people_harmless", size): step("human_labels", {"pairs": red_team}),
        named("people_helpful", size): step(
            "human_labels", {"pairs": benign}, question="helpfulness"
        ),
        named("people_obey", size): step(
            "human_labels", {"pairs": red_team}, question="helpfulness"
        ),
    }


def human_preference(of: Scale, size: str, name: str) -> dict[str, ConfigDict]:
    """The preference model of people's harmlessness, of helpfulness, or of both ("hh")."""
    learned = {
        "hh": ["people_harmless", "people_helpful"],
        "helpful": ["people_obey", "people_helpful"],
        "harmless": ["people_harmless"],
    }[name]
    # Fewer comparisons than an AI's preference model has: more epochs.
    epochs = 3 * of.preference_epochs
    comparisons = [named(of_people, size) for of_people in learned]
    return {named(f"{name}_preference", size): preference(of, size, comparisons, epochs=epochs)}


def readings(of: Scale, split: str) -> dict[str, ConfigDict]:
    """Chains and labels on held-out prompts and pairs, with what judges say of them."""
    steps: dict[str, ConfigDict] = {}

    def chains(size: str, **changes: Any) -> ConfigDict:
        return step(
            "critique_revise",
            {
                "model": helpful(size),
                "prompts": prompts("red_team", split),
                "constitution": REVISIONS,
            },
            num_rounds=4,
            limit=of.held_out_chains,
            **CHAIN,
            **changes,
        )

    for size in SIZES:
        asked = {
            "pairs": f"sandbox:laboratory/pairs/{split}.jsonl",
            "constitution": CONSTITUTION,
        }
        reasons: dict[str, Any] = {"chain_of_thought": True, "max_reasoning_tokens": 24}
        direct, reasoned, ensemble = (f"{n}_{size}" for n in ("asked", "reasoned", "ensemble"))
        judged: dict[str, Any] = {"limit": of.held_out_pairs, **SAMPLING}
        reasoning = asked | {"model": helpful(size)}
        # One placement, by a coin: the mean over both is less sure than either, and no calibration
        # of the model.
        steps[direct] = step("feedback", asked | {"model": pretrained(size)}, **judged)
        steps[reasoned] = step("feedback", reasoning, **reasons, **judged)
        steps[ensemble] = step("feedback", reasoning, num_reasonings=5, **reasons, **judged)
        steps[f"critiqued_{size}"] = chains(size)
        steps[f"direct_{size}"] = chains(size, critique=False)
        named_labels = {"direct": direct, "with_reasoning": reasoned, "ensemble": ensemble}
        steps[f"judged_labels_{size}"] = judge_records({"feedback": named_labels})
        steps[f"judged_chains_{size}"] = judge_records(
            {"chains": f"critiqued_{size}", "critiques": f"critiqued_{size}"}
        )
        steps[f"judged_direct_{size}"] = judge_records({"chains": f"direct_{size}"})
    for number in NUM_PRINCIPLES[:-1]:
        steps[f"critiqued_{number}_principles"] = chains("m", num_principles=number)
    steps["critiqued_general"] = chains("m", principles=GENERAL)

    people = {name: f"{name}_preference" for name in ("harmless", "helpful", "hh")}
    sizes = {size: f"critiqued_{size}" for size in SIZES}
    counts = {str(n): f"critiqued_{n}_principles" for n in NUM_PRINCIPLES[:-1]}
    harmless = {"harmless": people["harmless"]}
    for name, read, judges in (
        ("revision_scores", sizes | {"general": "critiqued_general"}, people),
        ("principle_scores", counts | {"16": "critiqued_m"}, harmless),
        ("direct_scores", sizes | {f"direct_{s}": f"direct_{s}" for s in SIZES}, harmless),
    ):
        steps[name] = step("score_revisions", {"chains": read, "preference_model": judges})
    return steps


def judge_records(inputs: Mapping[str, Any]) -> ConfigDict:
    """The oracle's reading of records, without any model."""
    return step("evaluate", inputs, judge="oracle")


def evaluations(of: Scale, split: str) -> dict[str, ConfigDict]:
    """The oracle's judgement of models' answers."""

    def judged(models: Mapping[str, str], **changes: Any) -> ConfigDict:
        inputs = {
            "models": models,
            "red_team": prompts("red_team", split),
            "benign": prompts("benign", split),
        }
        fixed: dict[str, Any] = {
            "judge": "oracle",
            "anchor": "sl_cai",
            "max_new_tokens": 44,
            **SAMPLING,
        }
        settings = {"limit": of.held_out} | fixed | changes
        return step("evaluate", inputs, **settings)

    starts = {"pretrained": pretrained("m"), "sl_cai": "sl_cai"}
    runs = ("helpful_rlhf", "hh_rlhf", "rl_cai", "rl_cai_cot")
    along = {
        f"{run}@{iteration}": f"{run}@{iteration}" for run in runs for iteration in moments(of)
    }
    variants = [
        *("sl_cai_1", "sl_cai_2", "sl_cai_3", "sl_cai", "rl_cai", "rl_cai_cot", "rl_cai_hard"),
        *("rl_cai_cot_20_80", "rl_cai_cot_free", "rl_cai_single", "dpo", "rl_cai_overtrained"),
        *("hh_rlhf", "hh_from_sl_cai", "rl_cai_from_pretrained"),
    ]
    sizes = {
        named(name, size): named(name, size)
        for size in (*of.sizes, "m")
        for name in ("sl_cai", *runs)
    }
    return {
        "along_rl": judged(starts | {"helpful_only": helpful("m")} | along),
        "along_rl_greedy": judged(starts | along, temperature=0.0),
        "variants": judged({name: name for name in variants}),
        "by_size": judged(sizes),
    }


def moments(of: Scale) -> list[int]:
    """The iterations of RL after which models are kept."""
    return list(range(of.snapshot_every, of.iterations + 1, of.snapshot_every))
