"""A training step that was broken off and goes on gives what the undisturbed one gives: every file
byte for byte, weights bit for bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from training_steps import MESHES, SETTINGS, run, write_inputs

from cai_jax import checkpoints
from cai_jax.core.metrics import read_metrics
from cai_jax.core.training_checkpoints import TrainingCheckpoints, rewind
from cai_jax.data.schema import Comparison, read_records, write_records

# Saved in the middle of a line of metrics, and broken off later.
CHANGES = {
    "finetune": {"epochs": 5, "log_every": 3, "ema_decay": 0.5},
    "preference": {"epochs": 3, "log_every": 3},
    "dpo": {"epochs": 3, "log_every": 3},
    "ppo": {
        "iterations": 6,
        "kl_target": 0.01,
        "kl_horizon": 50,
        "score_normalization": "running",
        "snapshot_every": 3,
        "record_every": 2,
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


class Killed(Exception):
    pass


def broken_off(monkeypatch, kind, inputs, folder, after, **changes):
    """Runs a step that ends before it saves after update `after`."""
    due = TrainingCheckpoints.due

    def until(self, number):
        if number == after:
            raise Killed
        return due(self, number)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingCheckpoints, "due", until)
        run(kind, inputs, folder, **changes)


def texts(folder):
    found = [*folder.rglob("*.jsonl"), *folder.glob("evaluation.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def weights(folder):
    return [leaf.tobytes() for leaf in _leaves(folder)]


def _leaves(folder):
    (folder / "manifest.json").write_text("{}")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.load_model(folder).params)]


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """Each kind once, without a checkpoint: (folder, counts)."""
    done = {}

    def of(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind) / "step"
            changes = CHANGES[kind] | {"checkpoints": {"every": 0}}
            done[kind] = folder, run(kind, inputs[kind], folder, **changes)
        return done[kind]

    return of


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_goes_on_to_the_same_bits(kind, undisturbed, inputs, tmp_path, monkeypatch, capsys):
    expected, counts = undisturbed(kind)
    folder, changes = tmp_path / "step", CHANGES[kind] | {"checkpoints": {"every": 2}}
    broken_off(monkeypatch, kind, inputs[kind], folder, 5, **changes)
    assert rewind(folder) == 4
    assert run(kind, inputs[kind], folder, **changes) == counts
    assert texts(folder) == texts(expected)
    assert len(read_metrics(folder)) >= 2
    assert weights(folder) == weights(expected)
    names = [{str(p.relative_to(f)) for p in f.glob("*/*")} for f in (folder, expected)]
    assert {name for name in names[0] if not name.startswith("unfinished")} == names[1]


@pytest.mark.nightly
def test_the_best_parameters_are_kept_and_measured(inputs, tmp_path, monkeypatch):
    # What is learned is wrong of the held-out: the sooner, the better.
    [path] = inputs["preference"]["comparisons"]
    turned = [dataclasses.replace(of, p_a=1 - of.p_a) for of in read_records(path, Comparison)]
    write_records(tmp_path / "turned.jsonl", turned)
    given = inputs["preference"] | {"held_out": [tmp_path / "turned.jsonl"]}
    changes = CHANGES["preference"] | {"checkpoints": {"every": 2, "best": True}}
    counts = run("preference", given, tmp_path / "whole" / "step", **changes)
    losses = {
        line["step"]: line["held_out_loss"]
        for line in read_metrics(tmp_path / "whole" / "step")
        if "held_out_loss" in line
    }
    assert sorted(losses) == [2, 4, 6] and losses[2] < losses[4] < losses[6]
    assert counts["best_step"] == 2
    measured = json.loads((tmp_path / "whole" / "step" / "evaluation.json").read_text())
    assert measured["turned_log_loss"] == pytest.approx(losses[2], rel=1e-5)

    broken_off(monkeypatch, "preference", given, tmp_path / "step", 5, **changes)
    assert rewind(tmp_path / "step") == 4
    assert run("preference", given, tmp_path / "step", **changes) == counts
    assert texts(tmp_path / "step") == texts(tmp_path / "whole" / "step")
    assert weights(tmp_path / "step") == weights(tmp_path / "whole" / "step")


def goes_on_elsewhere(kind, undisturbed, inputs, tmp_path, monkeypatch):
    expected, _ = undisturbed(kind)
    folder, changes = tmp_path / "step", CHANGES[kind] | {"checkpoints": {"every": 2}}
    broken_off(monkeypatch, kind, inputs[kind], folder, 3, **changes)
    assert rewind(folder) == 2
    run(kind, inputs[kind], folder, **changes, mesh=MESHES[kind])
    lines = read_metrics(folder), read_metrics(expected)
    for found, wanted in zip(*lines, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    for found, wanted in zip(_leaves(folder), _leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_it_goes_on_on_another_mesh(undisturbed, inputs, tmp_path, monkeypatch):
    goes_on_elsewhere("finetune", undisturbed, inputs, tmp_path, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["preference", "dpo", "ppo"])
def test_the_others_go_on_on_another_mesh(kind, undisturbed, inputs, tmp_path, monkeypatch):
    goes_on_elsewhere(kind, undisturbed, inputs, tmp_path, monkeypatch)
