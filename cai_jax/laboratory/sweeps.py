"""Building blocks of the ablations in configs/ablations/: cells that share their steps.

Models, prompts and constitution are keys at the top of a config, so that a sweep runs on real
ones: --config.pretrained=... --config.helpful=... --config.red_team=..., and
--config.steps.evaluation.judge=preference_model where no oracle knows the truth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cai_jax.laboratory import steps
from cai_jax.stages import step

CHAIN: dict[str, Any] = {**steps.CHAIN, "top_p": 0.95, "limit": 384}


def base() -> ConfigDict:
    """A config without steps: what all cells share, from the desk-scale world."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    config.pretrained = "sandbox:models/pretrained-m"
    config.helpful = "sandbox:models/helpful-m"
    config.constitution = "sandbox:constitution.json"
    for kind in ("red_team", "benign"):
        config[kind] = f"sandbox:prompts/{kind}_train.jsonl"
        config[f"{kind}_held_out"] = f"sandbox:prompts/{kind}_held_out.jsonl"
    config.helpfulness = "sandbox:comparisons/helpfulness_train.jsonl"
    config.steps = ConfigDict(sort_keys=False)
    return config


def samples(config: ConfigDict) -> None:
    """The step helpful_samples, which every SL-CAI learns besides."""
    config.steps.helpful_samples = step(
        "critique_revise", _asked(config, "benign"), num_rounds=0, **CHAIN
    )


def chains(config: ConfigDict, name: str = "chains", **changes: Any) -> None:
    """Critique-revision chains."""
    settings = {"num_rounds": 4, **CHAIN, **changes}
    config.steps[name] = step("critique_revise", _asked(config, "red_team"), **settings)


def _asked(config: ConfigDict, kind: str) -> dict[str, Any]:
    return {
        "model": config.get_ref("helpful"),
        "prompts": config.get_ref(kind),
        "constitution": config.get_ref("constitution"),
    }


def sl_cai(
    config: ConfigDict,
    name: str = "sl_cai",
    *,
    data: Sequence[str] = ("chains", "helpful_samples"),
    **changes: Any,
) -> None:
    """A pretrained model finetuned on chains, or on other demonstrations."""
    settings = {"epochs": 3, "learning_rate": 8e-4, "final": 0.02, **changes}
    inputs = {"model": config.get_ref("pretrained"), "data": list(data)}
    config.steps[name] = step("finetune", inputs, **settings)


def until_pairs(config: ConfigDict) -> None:
    """Chains, SL-CAI, and the pairs to judge."""
    samples(config)
    chains(config)
    sl_cai(config)
    config.steps.compare = step(
        "compare",
        {"model": "sl_cai", "prompts": config.get_ref("red_team")},
        max_response_tokens=44,
        max_tries=1,  # what is said twice is left out
        limit=512,
        **steps.SAMPLING,
    )


def feedback(config: ConfigDict, name: str = "feedback", **changes: Any) -> None:
    """AI labels; with chain of thought they come from the helpful-only model."""
    reasons = changes.get("chain_of_thought", False)
    settings: dict[str, Any] = {"max_reasoning_tokens": 24} if reasons else {"placement": "both"}
    inputs = {
        "model": config.get_ref("helpful" if reasons else "pretrained"),
        "pairs": "compare",
        "constitution": config.get_ref("constitution"),
    }
    config.steps[name] = step("feedback", inputs, **settings, **steps.SAMPLING, **changes)


def preference(
    config: ConfigDict, name: str = "preference", labels: str = "feedback", **changes: Any
) -> None:
    """A preference model of AI labels and people's helpfulness comparisons."""
    settings = {"epochs": 1, "learning_rate": 1e-3, "weights": (3.0, 1.0), **changes}
    inputs = {
        "model": config.get_ref("pretrained"),
        "comparisons": [labels, config.get_ref("helpfulness")],
    }
    config.steps[name] = step("preference", inputs, **settings)


def reinforced(
    config: ConfigDict, name: str = "rl_cai", judge: str = "preference", **changes: Any
) -> None:
    """RL from SL-CAI against a preference model."""
    settings = {"kl_coefficient": 0.2, "iterations": 40, "learning_rate": 3e-4, **changes}
    inputs = {
        "model": "sl_cai",
        "preference_model": judge,
        "prompts": [config.get_ref("red_team"), config.get_ref("benign")],
    }
    config.steps[name] = step("ppo", inputs, **settings)


def label_cells(config: ConfigDict, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """One RL-CAI a cell, each with feedback of its own."""
    until_pairs(config)
    for cell, changes in cells.items():
        feedback(config, f"feedback_{cell}", **changes)
        preference(config, f"preference_{cell}", f"feedback_{cell}")
        reinforced(config, cell, f"preference_{cell}")


def finish(config: ConfigDict, cells: Sequence[str], judge: str = "") -> ConfigDict:
    """The evaluation of all cells on held-out prompts, the table and the report.

    Args:
        config: with the cells' models among its steps.
        cells: their names; the first is the baseline.
        judge: a step's preference model, for judge=preference_model.
    """
    inputs: dict[str, Any] = {
        "models": {cell: cell for cell in cells},
        "red_team": config.get_ref("red_team_held_out"),
        "benign": config.get_ref("benign_held_out"),
    }
    if judge:
        inputs["preference_model"] = judge
    config.steps.evaluation = step(
        "evaluate", inputs, judge="oracle", anchor=cells[0], max_new_tokens=44, **steps.SAMPLING
    )
    config.steps.table = step("contrast", {"answers": "evaluation"}, baseline=cells[0])
    config.steps.report = step("report", {"steps": [name for name in config.steps]})
    return config
