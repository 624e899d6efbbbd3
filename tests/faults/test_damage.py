"""What a run refuses in one line where files were damaged, have vanished or cannot be written; and
that it goes on afterwards. The steps are those of `fakes.py`: they write text."""

import errno
import json
import os
import re
import resource
import shutil
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

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import ConfigDict
from fakes import fake_step as step

def get_config():
    config = ConfigDict(sort_keys=False)
    config.seed = 7
    config.steps = ConfigDict(sort_keys=False)
    config.steps.first = step("revise", {"prompts": "prompts.jsonl"})
    config.steps.second = step("revise", {"prompts": "first"}, num_rounds=1)
    config.steps.last = step("revise", {"prompts": "second"}, num_rounds=1)
    config.steps.counted = step("count", {"texts": ["texts.jsonl"]})
    return config
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"prompt": "number {number}"}}\n' for number in range(40)]
    Path("prompts.jsonl").write_text("".join(lines))
    said = {"id": "1", "dialogue": [{"role": "human", "text": "one"}], "response": "two"}
    Path("texts.jsonl").write_text(json.dumps(said) + "\n")
    Path("config.py").write_text(CONFIG)
    return Path("work")


def run(*arguments, workdir="work"):
    runner.main(["--config=config.py", f"--workdir={workdir}", *arguments], load_stage=fakes.load)


def refused(capsys, *arguments):
    """The one line with which a run ends, with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line.removeprefix("error: ").strip()


def made(workdir="work"):
    texts = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in Path(workdir).glob("*/*.txt")}
    manifests = Path(workdir).glob("*/manifest.json")
    return texts | {p.parent.name: artifact.read_manifest(p.parent)["hash"] for p in manifests}


def test_a_flipped_byte_in_an_artifact_is_refused_before_it_is_read(workdir, capsys):
    run()
    undisturbed = made()
    path = workdir / "second" / "text.txt"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert refused(capsys, "--overwrite=last") == (
        "work/second/text.txt: it has changed since step 'second' wrote it; make it again with "
        "--overwrite=second (and the steps that read it)"
    )
    assert artifact.is_finished(workdir / "last")  # nothing is lost by the refusal
    run("--overwrite=second,last")
    assert made() == undisturbed


def test_a_file_that_vanished_from_an_artifact_is_refused(workdir, capsys):
    run()
    (workdir / "second" / "text.txt").unlink()
    message = refused(capsys, "--overwrite=last")
    assert message.startswith("work/second/text.txt: it has vanished since step 'second' wrote it")


def test_an_input_that_vanishes_while_steps_run_is_named(workdir, capsys, monkeypatch):
    run(workdir="undisturbed")
    count = fakes.KINDS["count"]

    def too_late(config, inputs, folder):
        os.rename("texts.jsonl", "elsewhere.jsonl")
        return count.run(config, inputs, folder)

    with monkeypatch.context() as patch:
        patch.setitem(fakes.KINDS, "count", SimpleNamespace(**{**vars(count), "run": too_late}))
        message = refused(capsys)
    assert (
        message == "step 'counted': texts.jsonl: it has vanished since the run began; put it back"
    )
    assert "texts.jsonl" in refused(capsys)  # before anything runs
    os.rename("elsewhere.jsonl", "texts.jsonl")
    run()
    assert made() == made("undisturbed")


def test_a_full_disk_is_one_line_and_the_run_goes_on_after(workdir, capsys):
    run("--config.steps.second.num_rounds=99", workdir="undisturbed")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        message = refused(capsys, "--config.steps.second.num_rounds=99")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message == (
        "--workdir=work: cannot be written: [Errno 27] File too large; mend it, and the same "
        "command goes on"
    )
    assert artifact.is_finished(workdir / "first") and not artifact.is_finished(workdir / "second")
    run("--config.steps.second.num_rounds=99")
    assert made() == made("undisturbed")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_manifest_is_one_line(workdir, capsys, monkeypatch, number):
    def write(folder, manifest):
        raise OSError(number, os.strerror(number), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_manifest", write)
        message = refused(capsys)
    assert message.startswith(f"--workdir=work: cannot be written: [Errno {number}] ")
    run()
    assert artifact.is_finished(workdir / "last")


def terminated_in_second():
    """Starts a run in a process of its own, and ends it with SIGTERM halfway in `second`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/fakes.py"), "--config=config.py", "--workdir=work"],
        env=os.environ | {"PYTHONPATH": paths, fakes.HANG_IN: "second"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not Path("work/second/halfway").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_sigterm_ends_a_step_with_a_line_and_what_is_unfinished_is_not_lost(workdir, capsys):
    run(workdir="undisturbed")
    status, errors = terminated_in_second()
    assert status == 143
    assert errors == "\nterminated in second; the same command goes on\n"
    assert Path("work/.lock").read_text() == ""
    # Had it been a training, with a checkpoint: another config must not throw that away.
    saved = workdir / "second" / artifact.UNFINISHED / "00000002"
    saved.mkdir()
    (saved / "position.json").write_text("{}")
    assert refused(capsys, "--config.steps.second.suffix=?") == (
        'work/second: unfinished, with checkpoints of another config: suffix was "!", now "?"; '
        "choose another --workdir, or begin it anew with --overwrite=second"
    )
    message = refused(capsys, "--config.steps.second.inputs.prompts=prompts.jsonl")
    assert 'inputs.prompts was "first", now "prompts.jsonl"; choose another' in message
    assert saved.is_dir()
    shutil.copytree(workdir, "copy")
    run()
    assert "second: checkpoint 2 is damaged (position.json); begins anew" in capsys.readouterr().err
    assert made() == made("undisturbed")
    assert not (workdir / "second" / artifact.UNFINISHED).exists()
    # Inputs of other content: there is nothing to go on from.
    shutil.copytree("copy", "other")
    record = Path("other/second/unfinished/step.json")
    record.write_text(re.sub('"hash": "[0-9a-f]{64}"', '"hash": "another"', record.read_text()))
    capsys.readouterr()
    run(workdir="other")
    said = "second: begins anew: the content of inputs.prompts (first) has changed\n"
    assert said in capsys.readouterr().err
    assert made("other") == made("undisturbed")
    run("--config.steps.second.suffix=?", "--overwrite=second", workdir="copy")
    assert b"?" in Path("copy/second/text.txt").read_bytes()
