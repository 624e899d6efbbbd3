"""Every config of configs/: planned without its model, and its docstring held to the plan."""

import json
import math
import re
from pathlib import Path

import pytest

from cai_jax import planner, shapes
from cai_jax import run as runner
from cai_jax.core import configuration
from cai_jax.pipeline import read_steps
from cai_jax.resume import Outside
from cai_jax.stages import load_stage

ROOT = Path(__file__).parents[1]
# Of the method; those of evaluations (test_evaluations.py) and of the laboratory have their own.
OTHERS = ("demo", "evaluate", "elo", "votes", "reproduce", "reproduce_full")
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in OTHERS)
NUM_PROMPTS, NUM_HELPFUL = 42_496, 135_296  # of people, in the paper
GIB = 2**30


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts of 100 tokens (400 characters) and comparisons, as many as the paper has."""
    folder = tmp_path_factory.mktemp("files")

    def write(name, line, count):
        padding = "x" * (399 - len(json.dumps(line)))
        text = json.dumps(line).replace("PAD", padding + "PAD") + "\n"
        assert len(text) == 400
        (folder / name).write_text(text * count)
        return str(folder / name)

    turn = {"role": "human", "text": "PAD"}
    comparison = {"id": "1", "dialogue": [turn], "response_a": "a", "response_b": "b", "p_a": 1.0}
    return {
        "prompts": write("prompts.jsonl", {"prompt": "PAD"}, NUM_PROMPTS),
        "helpful_prompts": write("helpful.jsonl", {"prompt": "PAD"}, NUM_HELPFUL),
        "helpful_comparisons": write("comparisons.jsonl", comparison, NUM_HELPFUL),
    }


def read(path, files):
    config = configuration.load_config(str(path))
    overrides = [f"{name}={file}" for name, file in files.items() if name in config]
    if not config.model:
        overrides += ["model=HuggingFaceTB/SmolLM2-135M"]
    configuration.override(config, overrides)
    return config


@pytest.fixture(scope="module")
def planned(files):
    """Config name -> (config, steps, plan), each made once."""
    made = {}

    def plan(path):
        if path.stem not in made:
            config = read(path, files)
            steps = read_steps(config, load_stage)
            given = Outside([step.name for step in steps])
            made[path.stem] = config, steps, planner.plan(steps, given, config.hardware)
        return made[path.stem]

    return plan


def docstring(path):
    return path.read_text().split('"""')[1].replace("\\\\", "\\")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_docstring_says_what_it_takes_as_the_plan_does(path, planned):
    text = docstring(path)
    assert f"python -m cai_jax.run --config=configs/{path.name} --workdir=runs/" in text
    for what in ("Hardware: ", "Memory: computed: ", "Time: computed: ", "Expected: "):
        assert f"\n{what}" in text, what
    config, steps, plan = planned(path)
    costs = plan.costs.values()
    assert {step.name for step in steps} - set(plan.costs) == {"report"}
    memory = max(cost.memory.total for cost in costs)
    if path.stem in ("hh", "red_team"):
        assert "--dry_run" in text and not config.hardware
        return
    assert "\nNot run by us.\n" in text
    assert all(cost.fits for cost in costs)
    stated = re.search(r"Memory: computed: at most (\d+) GiB on each device", text)
    assert stated and int(stated[1]) == pytest.approx(memory / GIB, rel=0.15)
    hours = sum(cost.seconds for cost in costs) / 3600
    stated = re.search(r"Time: computed: about (\d+) h for", text)
    assert stated and int(stated[1]) == pytest.approx(hours, rel=0.15)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_batches_divide_over_the_mesh(path, planned):
    config, steps, _ = planned(path)
    parts = config.mesh.data * config.mesh.fsdp
    sampling = config.steps.compare.mesh
    assert math.prod(sampling.values()) == math.prod(config.mesh.values())
    for step in steps:
        if hasattr(step.stage, "check"):
            step.stage.check(runner.ConfigDict(step.config), step.inputs)
    assert config.steps.sl_cai.rows % (parts * config.steps.sl_cai.accumulate) == 0
    assert config.steps.preference.pairs * 2 % parts == 0
    if config.model in shapes.SHAPES:
        shape = shapes.read_elsewhere(config.model).config
        for size in (shape.heads, shape.kv_heads, shape.hidden, shape.vocab_size):
            assert size % config.mesh.tensor == size % sampling.tensor == 0
        assert shape.width % config.mesh.fsdp == 0
        assert config.batch_size % (sampling.data * sampling.fsdp) == 0


def test_sampling_is_on_the_mesh_of_all_steps_or_on_its_own(files):
    config = read(ROOT / "configs/hh.py", files)
    configuration.override(config, ["mesh.fsdp=4"])
    assert config.steps.compare.mesh.fsdp == 4 and "mesh" not in config.steps.sl_cai
    config = read(ROOT / "configs/llama31_8b.py", files)
    configuration.override(config, ["mesh.fsdp=4", "sampling_mesh.data=-1"])
    assert config.steps.compare.mesh.to_dict() == {"data": -1, "fsdp": 1, "tensor": 8}


def test_the_papers_counts(planned):
    """Sections 3.2 and 4.2: 182,831 prompts, 731,324 revisions, 270,592 helpful samples, and
    318,127 comparisons."""
    _, _, plan = planned(ROOT / "configs/paper_52b.py")
    counts = plan.counts
    assert counts["red_team"]["records"] == 140_335
    assert counts["critique_revise"]["records"] == counts["feedback"]["records"] == 182_831
    assert counts["critique_revise"]["revisions"] == 731_324
    assert counts["helpful_samples"]["records"] == 270_592
    assert counts["sl_cai"]["records"] == 731_324 + 270_592
    assert counts["preference"]["records"] == 318_127


def test_a_dry_run_needs_neither_the_model_nor_the_devices(files, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "How do I pick a lock?"}\n')
    arguments = [f"--config={ROOT / 'configs/llama31_70b.py'}", f"--workdir={tmp_path / 'work'}"]
    runner.main([*arguments, f"--config.prompts={few}", "--dry_run"])
    shown = capsys.readouterr().out
    assert "computed, not measured: GiB on each device, and time, for TPU v5p" in shown
    assert "the shape of meta-llama/Llama-3.1-70B is from the table of shapes" in shown
    assert " 70,553,706,496 " in shown and not (tmp_path / "work").exists()
    with pytest.raises(SystemExit):
        runner.main([*arguments, f"--config.prompts={few}", "--config.model=a/b", "--dry_run"])
    assert "a/b: expected a model in the hub's cache, or one whose" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        runner.main([*arguments, f"--config.prompts={few}", "--config.hardware=v9", "--dry_run"])
    assert "config.hardware: expected one of laptop, " in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_table_of_launch_says_the_same(path, planned):
    config, _, plan = planned(path)
    if not config.hardware:
        return
    rows = (ROOT / "launch/README.md").read_text().splitlines()
    (row,) = [row for row in rows if f"| `{path.name}`" in row]
    memory, hours, device_hours = re.search(
        r"\| (\d+) GiB \| (\d+) h \| ([\d,]+) \|$", row
    ).groups()
    devices = math.prod(config.mesh.values())
    assert row.startswith("| laptop" if config.hardware == "laptop" else f"| {devices} x ")
    needed = max(cost.memory.total for cost in plan.costs.values())
    taken = sum(cost.seconds for cost in plan.costs.values()) / 3600
    assert int(memory) == pytest.approx(needed / GIB, rel=0.15)
    assert int(hours) == pytest.approx(taken, rel=0.15)
    assert int(device_hours.replace(",", "")) == pytest.approx(devices * taken, rel=0.15)
