"""The same config gives the same losses on every mesh: all stages that train, on four devices
against one."""

import jax
import numpy as np
import pytest
from training_steps import MESHES, SETTINGS, run, write_inputs

from cai_jax import checkpoints
from cai_jax.core.metrics import read_metrics
from cai_jax.data.schema import Rollout, read_records


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


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
