"""The runner: order, skip, refuse, resume, overwrite, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest

from cai_jax import run as runner
from cai_jax.core import artifact
from cai_jax.resume import difference

ROOT = Path(__file__).parents[1]
CONFIG = """
from ml_collections import ConfigDict
from fakes import fake_step as step

def get_config():
    config = ConfigDict()
    config.seed = 7
    config.prompts = {prompts!r}
    config.suffix = "!"
    config.steps = ConfigDict(sort_keys=False)
    config.steps.second = step("revise", {{"prompts": "first"}}, num_rounds=2)
    config.steps.first = step(
        "revise",
        {{"prompts": config.get_ref("prompts")}},
        num_rounds=4,
        suffix=config.get_ref("suffix"),
    )
    config.steps.last = step("revise", {{"prompts": "second"}}, num_rounds=1)
    config.steps.other = step("revise", {{"prompts": config.get_ref("prompts")}}, num_rounds=1)
    return config
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """A config of four steps: first <- second <- last, and other."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(prompts="prompts.jsonl"))
    return path


def run(*arguments, config="config.py", workdir="work"):
    runner.main([f"--config={config}", f"--workdir={workdir}", *arguments], load_stage=fakes.load)


def refused(capsys, *arguments, **where) -> str:
    """Runs, and gives the one line on stderr with which it must end, and status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **where)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: "), captured.err
    return captured.err.removeprefix("error: ").strip()


def text(step, workdir="work"):
    return (Path(workdir) / step / "text.txt").read_text()


def tree(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_runs_steps_after_their_sources_and_writes_manifests_and_summary(config_file, capsys):
    run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["first", "second", "last", "other"]
    assert "8 records" in lines[0] and "24 tokens" in lines[0]
    assert text("last").splitlines()[0] == '7 0 7 0 7 0 {"prompt": "one"}!!!'
    manifest = json.loads(Path("work/second/manifest.json").read_text())
    assert manifest["kind"] == "revise" and manifest["seed"] == 7
    assert manifest["config"]["num_rounds"] == 2 and manifest["config"]["optimizer"]["rate"] == 0.1
    assert manifest["config"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert (manifest["records"], manifest["tokens"]) == (16, 48)
    first = json.loads(Path("work/first/manifest.json").read_text())
    assert manifest["inputs"] == {"prompts": {"reference": "first", "hash": first["hash"]}}
    assert first["inputs"]["prompts"]["hash"] == artifact.fingerprint(Path("prompts.jsonl"))
    assert list(first["files"]) == ["text.txt"]
    summary = json.loads(Path("work/summary.json").read_text())
    assert summary["steps"]["last"]["records"] == 16 and summary["steps"]["last"]["seconds"] >= 0
    assert summary["evaluation"] == {}
    took = sum(step["seconds"] for step in summary["steps"].values())
    kept = summary["goodput"]
    assert kept["runs"] == 1 and kept["productive_seconds"] == pytest.approx(took, abs=0.002)
    assert kept["goodput"] == pytest.approx(took / kept["wall_seconds"], abs=1e-4)


def test_a_finished_workdir_is_left_as_it_is(config_file, capsys):
    run()
    before = tree("work")
    stamps = {name: Path(name).stat().st_mtime_ns for name in before}
    run()
    assert capsys.readouterr().out.count("(finished before)") == 4
    assert tree("work") == before
    assert {name: Path(name).stat().st_mtime_ns for name in before} == stamps


def test_a_changed_config_is_refused_with_the_difference(config_file, capsys):
    run()
    before = tree("work")
    message = refused(capsys, "--config.steps.second.num_rounds=3")
    assert "work/second: made by another config: num_rounds was 2, now 3;" in message
    assert message.endswith("--overwrite=second,last")
    message = refused(capsys, "--config.seed=8")
    assert "work/first: made by another config: seed was 7, now 8;" in message
    assert message.endswith("--overwrite=first,second,last,other")
    message = refused(capsys, "--config.suffix=?", "--config.steps.first.num_rounds=1")
    assert "num_rounds was 4, now 1 (and 1 more)" in message
    assert tree("work") == before


def test_who_watches_and_the_mesh_do_not_make_another_step():
    step = SimpleNamespace(
        kind="finetune", config={"rows": 2, "monitoring": {"writers": ["wandb"]}}
    )
    made = {
        "kind": "finetune",
        "inputs": {},
        "hash": "",
        "config": {"rows": 2, "mesh": {"data": 2}},
    }
    assert difference(step, made, {}) is None
    made["config"] |= {"rows": 3}
    assert difference(step, made, {}) == "rows was 3, now 2"


def test_a_changed_input_is_refused(config_file, capsys):
    run()
    Path("prompts.jsonl").write_text('{"prompt": "three"}\n')
    message = refused(capsys)
    assert "the content of inputs.prompts (prompts.jsonl) has changed" in message
    assert "--overwrite=first,second,last,other" in message
    Path("others.jsonl").write_text('{"prompt": "one"}\n')
    message = refused(capsys, "--config.steps.other.inputs.prompts=others.jsonl")
    assert "first: made by another config" in message


def test_overwriting_names_the_steps_that_read_it_before_anything_is_gone(config_file, capsys):
    run()
    before = tree("work")
    message = refused(capsys, "--overwrite=first", "--config.steps.first.suffix=?")
    assert "the finished steps second, last read what it makes" in message
    assert message.endswith("--overwrite=first,second,last")
    assert tree("work") == before
    run("--overwrite=last,second,first", "--config.steps.first.suffix=?")
    output = capsys.readouterr().out
    assert output.count("(finished before)") == 1
    assert text("last").splitlines()[0] == '7 0 7 0 7 0 {"prompt": "one"}?!!'
    run("--overwrite=other", "--config.steps.first.suffix=?")
    assert capsys.readouterr().out.count("(finished before)") == 3


def test_another_mesh_goes_on_in_the_same_workdir(config_file, capsys):
    source = config_file.read_text().replace(
        "return config", "config.mesh = dict(data=1, fsdp=1, tensor=1)\n    return config"
    )
    config_file.write_text(source)
    run()
    run("--config.mesh.fsdp=2")
    assert capsys.readouterr().out.count("(finished before)") == 4
    message = refused(capsys, "--config.mesh.fsdp=4096", workdir="large")
    assert message.startswith(
        "step 'first': mesh data=1 x fsdp=4096 x tensor=1: expected 4096 devices"
    )


def test_a_step_may_have_a_mesh_of_its_own(config_file, capsys):
    config_file.write_text(
        config_file.read_text().replace(
            "return config", "config.steps.second.mesh = ConfigDict({'data': 2})\n    return config"
        )
    )
    run()

    def mesh(step):
        return json.loads(Path(f"work/{step}/manifest.json").read_text())["config"]["mesh"]

    assert mesh("second") == {"data": 2, "fsdp": 1, "tensor": 1}
    assert mesh("last") == {"data": 1, "fsdp": 1, "tensor": 1}
    message = refused(capsys, "--config.steps.second.mesh.data=4096", workdir="large")
    assert message.startswith("step 'second': mesh data=4096 x fsdp=1 x tensor=1: expected 4096")
    assert not Path("large").exists()
    config_file.write_text(config_file.read_text().replace("'data': 2", "'rows': 2"))
    message = refused(capsys, workdir="large")
    assert message.startswith("config.steps.second.mesh: rows: ")
    assert not Path("large").exists()


def test_a_workdir_of_another_config_is_refused(config_file, capsys):
    run()
    other = Path("other.py")
    other.write_text(config_file.read_text().replace("steps.other", "steps.another"))
    message = refused(capsys, config="other.py")
    assert "work/other: made by another config" in message
    assert "first, second, last, another" in message


def test_steps_selects_and_asks_for_what_is_missing(config_file, capsys):
    message = refused(capsys, "--steps=second")
    assert "step 'first' is needed and not finished" in message
    run("--steps=first,other")
    assert sorted(p.parent.name for p in Path("work").glob("*/manifest.json")) == ["first", "other"]
    message = refused(capsys, "--steps=second", "--config.suffix=?")
    assert 'work/first: made by another config: suffix was "!", now "?"' in message
    run("--steps=second")
    run()
    assert capsys.readouterr().out.count("(finished before)") == 3
    assert set(json.loads(Path("work/summary.json").read_text())["steps"]) == {
        "first",
        "second",
        "last",
        "other",
    }


def test_a_removed_source_asks_for_its_readers(config_file, capsys):
    run()
    Path("work/first/manifest.json").unlink()
    message = refused(capsys)
    assert "work/second: made by another config: it was made from first, which is no longer" in (
        message
    )
    run("--overwrite=second,last")
    assert text("last").count("\n") == 16


def test_finished_steps_of_other_workdirs_are_taken_where_they_would_be_the_same(
    config_file, capsys
):
    run(workdir="whole")
    run("--steps=first", workdir="a")
    run("--steps=other", workdir="b")
    (Path("work") / "first").mkdir(parents=True)
    run("--reuse=a,b,whole", "--steps=first,other,second", "--config.steps.second.num_rounds=1")
    # Not `second`: it is of another config there; and `last` was not asked for.
    taken = [line for line in capsys.readouterr().err.splitlines() if "taken" in line]
    assert taken == [f"{name}: taken from another workdir" for name in ("first", "other")]
    for of, name in (("a", "first"), ("b", "other")):
        found, there = Path("work") / name, Path(of) / name
        assert {p.name: p.read_bytes() for p in found.iterdir()} == {
            p.name: p.read_bytes() for p in there.iterdir()
        }
        assert (found / "text.txt").samefile(there / "text.txt")  # no second copy on the disk
    assert len(text("second").splitlines()) * 2 == len(text("second", "whole").splitlines())
    assert not Path("work/last").exists()

    run("--reuse=whole", "--overwrite=other", workdir="b")  # what is to be made again is not taken
    assert "other: taken" not in capsys.readouterr().err
    assert text("last", "b") == text("last", "whole")
    assert Path("b/last/text.txt").samefile(Path("whole/last/text.txt"))
    assert not Path("b/other/text.txt").samefile(Path("whole/other/text.txt"))


def test_steps_that_other_inputs_made_are_not_taken(config_file, capsys):
    run("--config.seed=8", workdir="a")
    run("--reuse=a")
    assert "taken" not in capsys.readouterr().err
    assert refused(capsys, "--reuse=b", workdir="c") == (
        "--reuse=b: expected the workdir of a run, found no run.json"
    )


def test_an_unfinished_step_runs_again_from_its_start(config_file, capsys):
    run("--steps=first")
    expected = text("first")
    Path("work/first/manifest.json").unlink()
    Path("work/first/text.txt").write_text("half")
    Path("work/first/leftover").touch()
    run("--steps=first")
    assert text("first") == expected and not Path("work/first/leftover").exists()


def test_a_folder_that_no_run_made_is_not_removed(config_file, capsys):
    Path("work/second").mkdir(parents=True)
    Path("work/second/thesis.tex").write_text("years of work")
    message = refused(capsys)
    assert message.startswith("work/second: is there, and no step's")
    assert Path("work/second/thesis.tex").read_text() == "years of work"
    assert not Path("work/first").exists()


def test_a_refusal_in_a_step_leaves_it_unfinished(config_file, capsys):
    message = refused(capsys, "--config.steps.second.fail=no such thing")
    assert message == "step 'second': no such thing"
    assert artifact.is_finished(Path("work/first"))
    assert not artifact.is_finished(Path("work/second"))
    run()
    assert artifact.is_finished(Path("work/last"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.sed=1"], "--config.sed: unknown key 'sed'; did you mean 'seed'?"),
        (
            ["--config.steps.first.num_round=1"],
            "--config.steps.first.num_round: unknown key 'num_round'; did you mean 'num_rounds'?",
        ),
        (["--config.steps.frist.num_rounds=1"], "unknown key 'frist'; did you mean 'first'?"),
        (["--config.seed=one"], "--config.seed: expected a whole number, found 'one'"),
        (["--config.seed=1.5"], "--config.seed: expected a whole number, found '1.5'"),
        (["--config.seed=-1"], "config.seed: expected 0 or more, found -1"),
        (["--config.seed"], "--config.seed: expected --config.KEY=VALUE, found no '='"),
        (["--steps=frist"], "--steps: unknown step 'frist'; did you mean 'first'?"),
        (["--overwrite=nothing"], "--overwrite: unknown step 'nothing'; expected one of first"),
        (["--step=first"], "unknown flag --step; did you mean '--steps'?"),
        (["--config.prompts=gone.jsonl"], "step 'first': inputs.prompts: gone.jsonl: expected a"),
        (["--config.prompts=frist"], "no step has this name either, did you mean 'first'?"),
        (["--config.prompts="], "config.steps.first.inputs.prompts: expected a step, a path"),
        (["--config.steps.first.inputs.prompts=last"], "second, first, last: each waits for"),
        (["--config.steps.first.inputs=last"], "a group of keys; set one of prompts"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(config_file, capsys, arguments, expected):
    before = tree(".")
    assert expected in refused(capsys, *arguments)
    assert tree(".") == before and not Path("work").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "one"}\n{"promt": "two"}\n', "prompts.jsonl:2: field 'chosen' is missing;"),
        ('{"prompt": "one"}\n{"prompt": "two"\n', "prompts.jsonl:2: expected one JSON object"),
        ('{"prompt": 3}\n', "prompts.jsonl:1: prompt: expected str, found '3'"),
        ("", "prompts.jsonl: expected at least one prompt, found none"),
    ],
)
def test_malformed_prompts_are_refused_before_anything_runs(config_file, capsys, content, expected):
    Path("prompts.jsonl").write_text(content)
    message = refused(capsys)
    assert message.startswith("step 'first': inputs.prompts: prompts.jsonl") and expected in message
    assert not Path("work").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"revise"', '"revize"', "config.py: unknown step kind 'revize'"),
        ("num_rounds=4", "num_round=4", "unknown key 'num_round'; did you mean 'num_rounds'?"),
        ("num_rounds=4", 'num_rounds="4"', "num_rounds: expected a whole number, found '4'"),
        ("seed = 7", "seed = 1 / 0", "config.py:7: ZeroDivisionError: division by zero"),
        ("seed = 7", "seed = = 7", "config.py:7: SyntaxError: invalid syntax"),
        ("def get_config", "def config", "expected a function get_config(), found none"),
        ("return config", "return 3", "must return a ConfigDict, found int"),
    ],
)
def test_mistakes_in_a_config_file(config_file, capsys, old, new, expected):
    config_file.write_text(config_file.read_text().replace(old, new))
    assert expected in refused(capsys)
    assert "gone.py: expected a config file, found none" in refused(capsys, config="gone.py")
    assert not Path("work").exists()


def test_an_override_of_a_shared_value_reaches_every_step(config_file):
    run("--config.suffix=?", "--config.steps.last.suffix=;")
    assert text("first").splitlines()[0].endswith("?")
    assert text("second").splitlines()[0].endswith("?!")
    assert text("last").splitlines()[0].endswith("?!;")


def test_dry_run_counts_the_papers_revisions_and_writes_nothing(config_file, capsys):
    """182,831 prompts x 4 revisions (paper section 3.2) are 731,324."""
    prompts = Path("many.jsonl")
    prompts.write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(182_831)))
    before = tree(".")
    run("--dry_run", "--config.prompts=many.jsonl", "--steps=first")
    lines = capsys.readouterr().out.splitlines()
    counts = ["182,831", "73,132,400", "1.46e+08", "731,324", "revisions"]
    assert lines[1].split() == ["first", "revise", *counts]
    assert lines[2].split() == ["in", "all", "73,132,400", "1.46e+08"]
    assert tree(".") == before


def start(*arguments, workdir="work", **environment):
    """The runner as a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/fakes.py"), "--config=config.py"]
        + [f"--workdir={workdir}", *arguments],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def test_killed_in_a_step_it_finishes_with_the_same_text(config_file, capsys):
    run(workdir="undisturbed")
    process = start(**{fakes.HANG_IN: "second"})
    wait_for(Path("work/second/halfway"))
    # Meanwhile nobody else may run there.
    rival = start()
    _, errors = rival.communicate(timeout=60)
    assert rival.returncode == 2
    assert f"work: another run holds it (process {process.pid} on " in errors
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert artifact.is_finished(Path("work/first"))
    assert not artifact.is_finished(Path("work/second"))
    again = start()
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert errors.startswith(f"taking over from process {process.pid} on ")
    assert errors.count("\n") == 1
    assert output.count("(finished before)") == 1
    for step in ("first", "second", "last", "other"):
        assert text(step) == text(step, "undisturbed")
        hashes = [
            json.loads(Path(workdir, step, "manifest.json").read_text())["hash"]
            for workdir in ("work", "undisturbed")
        ]
        assert hashes[0] == hashes[1]


def test_nothing_to_do_takes_no_time_and_no_jax(config_file):
    run()
    script = "import sys; sys.argv[0] = 'x'; import fakes; fakes.runner.main(load_stage=fakes.load)"
    code = f"{script}; print([m for m in ('jax', 'numpy', 'transformers') if m in sys.modules])"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "--config=config.py", "--workdir=work"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 5
    assert done.stdout.splitlines()[-1] == "[]"


SNAPSHOTS = """
from ml_collections import ConfigDict
from fakes import fake_step as step

def get_config():
    config = ConfigDict()
    config.seed = 7
    config.early = "rl@2"
    config.steps = ConfigDict(sort_keys=False)
    config.steps.judge = step("use", {"models": {"early": config.get_ref("early")}})
    config.steps.rl = step("train", {})
    return config
"""


def test_a_model_along_a_steps_training_is_an_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(SNAPSHOTS)
    run()  # rl before judge, which reads it
    assert Path("work/judge/read.txt").read_text() == "work/rl/snapshots/step-0002"
    manifest = artifact.read_manifest(Path("work/judge"))
    entry = manifest["inputs"]["models.early"]
    assert entry == {
        "reference": "rl@2",
        "hash": artifact.read_manifest(Path("work/rl"))["hash"],
    }
    message = refused(capsys, "--config.early=rl@4")
    assert 'models.early was "rl@2", now "rl@4"' in message
    message = refused(capsys, "--config.early=rl@3", workdir="other")
    assert "models.early=rl@3: expected a multiple of its snapshot_every (2), at most" in message
    assert not Path("other/rl").exists()


def test_a_training_that_diverges_ends_in_one_line_and_stays_unfinished(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(SNAPSHOTS)
    with pytest.raises(SystemExit) as stop:
        run("--config.steps.rl.diverge=3")
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: rl: iteration 3: loss is nan"
    assert Path("work/rl/snapshots/step-0002").is_dir()
    assert not Path("work/rl/manifest.json").exists() and not Path("work/judge").exists()
