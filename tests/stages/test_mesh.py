"""The same config gives the same losses on every mesh: all stages that train, on four devices
against one."""

import jax
import numpy as np
import pytest
from world_models import WORDS, human, one_device, write_model

from cai_jax import checkpoints
from cai_jax.core.metrics import read_metrics
from cai_jax.data.schema import (
    Comparison,
    Demonstration,
    Prompt,
    Rollout,
    read_records,
    write_records,
)
from cai_jax.stages import dpo, finetune, ppo, preference

# Each pair of axes with one of the stages: all of them with all would take minutes to compile.
MESHES = {
    "finetune": {"data": 2, "fsdp": 2, "tensor": 1},
    "preference": {"data": 2, "fsdp": 1, "tensor": 2},
    "dpo": {"data": 2, "fsdp": 1, "tensor": 2},
    "ppo": {"data": 1, "fsdp": 2, "tensor": 2},
}
SETTINGS = {
    "finetune": (finetune, {"rows": 4, "sequence_length": 32, "log_every": 1}),
    "preference": (preference, {"pairs": 4, "log_every": 1}),
    "dpo": (dpo, {"pairs": 4, "log_every": 1}),
    "ppo": (
        ppo,
        {
            "prompts_per_iteration": 4,
            "max_new_tokens": 5,
            "iterations": 2,
            "learning_rate": 1e-3,
            "record_every": 1,
        },
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    dialogues = [human(f"tell me about the {word}") for word in WORDS]
    write_records(
        folder / "demonstrations.jsonl",
        [Demonstration(str(i), dialogue, "the bike. " * i) for i, dialogue in enumerate(dialogues)],
    )
    write_records(
        folder / "comparisons.jsonl",
        [
            Comparison(str(i), dialogue, "the bike. " * i, "the boss", i / 10, "human")
            for i, dialogue in enumerate(dialogues)
        ],
    )
    write_records(
        folder / "prompts.jsonl",
        [Prompt(str(i), dialogue) for i, dialogue in enumerate(dialogues)],
    )
    model = write_model(folder / "model")
    return {
        "finetune": {"model": model, "data": [folder / "demonstrations.jsonl"]},
        "preference": {
            "model": model,
            "comparisons": [folder / "comparisons.jsonl"],
            "held_out": [folder / "comparisons.jsonl"],
        },
        "dpo": {"model": model, "comparisons": [folder / "comparisons.jsonl"]},
        "ppo": {
            "model": model,
            "preference_model": write_model(folder / "pm", seed=1, preference_model=True),
            "prompts": [folder / "prompts.jsonl"],
        },
    }


def run(kind, inputs, folder, **changes):
    stage, setting = SETTINGS[kind]
    folder.mkdir(parents=True)
    counts = stage.run(one_device(stage.default_config(), **{**setting, **changes}), inputs, folder)
    (folder / "manifest.json").write_text("{}")
    return counts


# What stands beside the parameters is split and put together too: other states, other trees.
VARIANTS = {
    "finetune": {
        "accumulate": 2,
        "rows": 8,
        "epochs": 3,
        "optimizer": "adafactor",
        "ema_decay": 0.5,
        "remat": "layer",
    },
    "preference": {
        "accumulate": 2,
        "epochs": 3,
        "lora": {"rank": 2},
        "shared_prompts": True,
        "moment_dtype": "bfloat16",
        "centring": 0.1,
    },
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "changes",
    [
        {"value_model": "preference_model", "baseline": "none", "truncation": "bootstrap"},
        {"advantage": "group", "samples_per_prompt": 4, "kl_target": 2.0},
    ],
    ids=["values of a preference model", "group"],
)
def test_other_choices_of_ppo_on_four_devices(inputs, tmp_path, changes):
    one, four = tmp_path / "one" / "step", tmp_path / "four" / "step"
    counts = run("ppo", inputs["ppo"], one, **changes)
    mesh = MESHES["ppo"]
    assert run("ppo", inputs["ppo"], four, mesh=mesh, **changes) == pytest.approx(counts, rel=1e-4)
    for expected, found in zip(read_metrics(one), read_metrics(four), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"), [*((kind, {}) for kind in SETTINGS), *VARIANTS.items()]
)
def test_a_mesh_of_four_gives_the_losses_of_one_device(kind, changes, inputs, tmp_path):
    assert jax.device_count() >= 4
    # The step's name is part of its random key.
    one, four = tmp_path / "one" / "step", tmp_path / "four" / "step"
    counts = run(kind, inputs[kind], one, **changes)
    assert run(kind, inputs[kind], four, mesh=MESHES[kind], **changes) == pytest.approx(
        counts, rel=1e-4
    )
    lines, lines_of_four = read_metrics(one), read_metrics(four)
    assert len(lines) == len(lines_of_four) >= 2
    for expected, found in zip(lines, lines_of_four):
        # Sums in another order: absolute, where a loss is next to 0.
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    models = [checkpoints.load_model(folder) for folder in (one, four)]
    for expected, found in zip(*(jax.tree.leaves(model.params) for model in models)):
        np.testing.assert_allclose(found, expected, atol=2e-4)
    if kind == "ppo":
        said = [read_records(folder / "rollouts.jsonl", Rollout) for folder in (one, four)]
        assert [r.response for r in said[0]] == [r.response for r in said[1]]
