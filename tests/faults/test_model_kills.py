"""Runs of every step that has a model, disturbed in all ways and started again: the hashes of what
they make, of texts and of models, and their counts are those of an undisturbed run."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_pipeline
from processes import Runs

from cai_jax.core import artifact

pytestmark = pytest.mark.nightly  # what is compiled alone takes a minute

HERE = Path(__file__).parent
STEPS = tuple(tiny_pipeline.get_config().steps)
KILLS = 50


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_pipeline.write_questions(folder / tiny_pipeline.QUESTIONS)
    runs = Runs(folder, HERE / "tiny_pipeline.py")
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def undisturbed(runs):
    """What a run makes, and the seconds of each step where all is compiled."""
    runs.finish("cold")
    runs.finish("warm")
    found = made(runs.folder / "warm")
    assert set(found) == set(STEPS)
    assert made(runs.folder / "cold") == found
    manifests = {step: artifact.read_manifest(runs.folder / "warm" / step) for step in STEPS}
    return found, {step: manifest["seconds"] for step, manifest in manifests.items()}


def made(workdir):
    """The hash of each finished step's files, which are read again, and its counts."""
    found = {}
    for path in workdir.glob(f"*/{artifact.MANIFEST}"):
        manifest = artifact.read_manifest(path.parent)
        files = artifact.file_hashes(path.parent)
        assert not (path.parent / artifact.UNFINISHED).exists()
        assert artifact.combined_hash(files) == manifest["hash"]
        found[path.parent.name] = (manifest["hash"], manifest["counts"])
    return found


def begun(folder, seconds):
    """A function: whether a step began so long ago, or is finished."""
    at = []

    def ready():
        if artifact.is_finished(folder):
            return True
        if not at and (folder / artifact.UNFINISHED / "step.json").exists():
            at.append(time.monotonic())
        return bool(at) and time.monotonic() > at[0] + seconds

    return ready


def test_killed_at_random_moments_of_every_step(runs, undisturbed):
    expected, seconds = undisturbed
    draw, kills, where, number = random.Random(1), 0, set(), 0
    while kills < KILLS:
        workdir = f"killed-{number}"
        for step in [step for step in STEPS for _ in range(2)]:
            folder = runs.folder / workdir / step
            ready = begun(folder, draw.uniform(0, seconds[step]))
            ended = runs.stopped(workdir, signal.SIGKILL, ready)
            assert ended in (0, -signal.SIGKILL), runs.log.read_text()
            kills += ended == -signal.SIGKILL
            if not artifact.is_finished(folder):
                where.add(step)
        runs.finish(workdir)
        assert made(runs.folder / workdir) == expected
        number += 1
    assert where == set(STEPS)
    print(f"{kills} kills of {number} runs")


@pytest.mark.parametrize("step", ["revisions", "sl_cai", "rl_cai", "evaluation"])
def test_terminated_and_its_last_checkpoint_or_block_cut_short(runs, undisturbed, step):
    workdir = f"terminated-{step}"
    folder = runs.folder / workdir / step
    unfinished = folder / artifact.UNFINISHED
    trains = step in ("sl_cai", "rl_cai")
    wanted = "*/position.json" if trains else "blocks/*.json"
    ended = runs.stopped(workdir, signal.SIGTERM, lambda: len([*unfinished.glob(wanted)]) > 1)
    assert ended == 143, runs.log.read_text()
    assert runs.log.read_text().endswith(f"\nterminated in {step}; the same command goes on\n")
    last = max(unfinished.glob(wanted))
    if trains:
        files = [path for path in (last.parent / "state").rglob("*") if path.is_file()]
        cut = max(files, key=lambda path: path.stat().st_size)
    else:
        cut = last.with_suffix(".jsonl")
    os.truncate(cut, cut.stat().st_size // 2)
    runs.finish(workdir)
    if trains:
        number = int(last.parent.name)
        assert f"{step}: checkpoint {number} is damaged (state/" in runs.log.read_text()
    assert made(runs.folder / workdir) == undisturbed[0]


def refused(runs, workdir, *flags):
    """The line with which a run ends, with status 2."""
    runs.start(workdir, *flags)
    said = len(runs.log.read_text()) if runs.log.exists() else 0
    assert runs.end() == 2, runs.log.read_text()
    return runs.log.read_text()[said:].splitlines()[-1]


@pytest.fixture(scope="module")
def finished(runs, undisturbed):
    runs.finish("damaged")
    return "damaged"


def test_a_flipped_byte_in_a_model_is_refused_and_made_again(runs, undisturbed, finished):
    params = runs.folder / finished / "preference" / "model" / "params"
    files = [path for path in params.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    readers = "rl_cai,best,scores,evaluation"
    said = refused(runs, finished, f"--overwrite={readers}")
    assert "it has changed since step 'preference' wrote it" in said
    runs.finish(finished, f"--overwrite=preference,{readers}")
    assert made(runs.folder / finished) == undisturbed[0]


def test_an_input_that_vanished_is_named_and_put_back(runs, undisturbed, finished):
    path = runs.folder / tiny_pipeline.QUESTIONS
    path.rename(path.with_suffix(".elsewhere"))
    try:
        assert tiny_pipeline.QUESTIONS in refused(runs, finished, "--overwrite=choices")
    finally:
        path.with_suffix(".elsewhere").rename(path)
    runs.finish(finished, "--overwrite=choices")
    assert made(runs.folder / finished) == undisturbed[0]


def mount(folder, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_is_full_and_then_read_only(runs, undisturbed):
    workdir = runs.folder / "small"
    workdir.mkdir()
    if os.geteuid() != 0 or not mount(workdir, "size=600k"):
        pytest.skip("only root mounts a disk")
    try:
        said = refused(runs, "small")
        assert said.startswith("error: --workdir=small: cannot be written: [Errno 28] No space")
        assert mount(workdir, "remount,size=1g,ro")
        said = refused(runs, "small")
        assert said.startswith("error: --workdir=small: cannot be written: [Errno 30] Read-only")
        assert mount(workdir, "remount,size=1g,rw")
        runs.finish("small")
        assert made(workdir) == undisturbed[0]
    finally:
        subprocess.run(["umount", str(workdir)], check=True)
