"""Every ablation: its cells are trained, evaluated and compared, and share what they can."""

from pathlib import Path

import pytest

from cai_jax.core import configuration
from cai_jax.pipeline import read_steps
from cai_jax.run import ConfigDict
from cai_jax.stages import load_stage

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "configs/ablations").glob("*.py"))
# Of each sweep, what its cells do not share, besides the models: made once a cell.
OF_CELLS = {
    "principle_count": {"critique_revise"},
    "principle_choice": {"feedback", "preference"},
    "label_kind": {"feedback", "preference"},
    "clamp": {"feedback", "preference"},
    "chain_of_thought": {"feedback", "preference"},
    "revisions": set(),
    "kl_coefficient": set(),
    "preference_mix": {"preference"},
    "method": set(),
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_cells_are_steps_of_one_config(path):
    config = configuration.load_config(str(path))
    steps = {step.name: step for step in read_steps(config, load_stage)}
    cells = list(steps["evaluation"].inputs["models"])
    assert len(cells) >= 2 and set(cells) <= set(steps)
    assert steps["table"].config["baseline"] == steps["evaluation"].config["anchor"] == cells[0]
    kinds = [step.kind for step in steps.values()]
    for kind in ("critique_revise", "feedback", "preference"):
        if kind in OF_CELLS[path.stem]:
            assert kinds.count(kind) >= len(cells)
        else:
            assert kinds.count(kind) <= (2 if kind == "critique_revise" else 1)
    assert "human_labels" not in kinds
    for step in steps.values():
        if hasattr(step.stage, "check") and step.kind != "evaluate":
            step.stage.check(ConfigDict(step.config), step.inputs)


def test_each_ablation_is_among_them():
    assert {path.stem for path in PATHS} == set(OF_CELLS)


def test_models_and_prompts_are_keys_of_the_config(tmp_path):
    config = configuration.load_config(str(ROOT / "configs/ablations/label_kind.py"))
    configuration.override(config, ["pretrained=mine", "red_team=attacks.jsonl"])
    steps = {step.name: step for step in read_steps(config, load_stage)}
    for name in ("sl_cai", "feedback_soft", "preference_hard"):
        assert steps[name].inputs["model"] == "mine"
    assert steps["compare"].inputs["prompts"] == "attacks.jsonl"
    assert steps["hard"].inputs["prompts"][0] == "attacks.jsonl"
    assert steps["hard"].inputs["model"] == "sl_cai"
