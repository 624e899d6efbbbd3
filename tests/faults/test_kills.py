"""Runs that are killed at random moments and started again make what an undisturbed run makes."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import small_steps
from processes import Runs

from cai_jax.core import artifact

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small_steps.write_prompts(folder / "prompts.jsonl")
    runs = Runs(folder, HERE / "small_steps.py")
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def undisturbed(runs):
    """What a run makes, and how long each run takes, begun in a process that is there."""
    started = time.monotonic()
    runs.finish("undisturbed")
    return made(runs.folder / "undisturbed"), time.monotonic() - started


def made(workdir):
    """All files of the steps but Orbax's and the manifests, which have times; the arrays are in
    bits.txt."""
    files = [path for path in workdir.glob("[!_]*/**/*") if path.is_file()]
    found = {path.relative_to(workdir): path for path in files}
    return {
        str(name): path.read_bytes()
        for name, path in found.items()
        if "params" not in name.parts and name.name != artifact.MANIFEST
    }


def killed(runs, undisturbed, draw, wanted, name):
    """Kills runs at random until so many were; each workdir ends as the undisturbed one did."""
    expected, seconds = undisturbed
    kills, workdirs, where = 0, 0, set()
    while kills < wanted:
        workdir = f"{name}-{workdirs}"
        while kills < wanted:
            until = time.monotonic() + draw.uniform(0, seconds)
            ended = runs.stopped(workdir, signal.SIGKILL, lambda u=until: time.monotonic() > u)
            if ended == 0:
                break
            assert ended == -signal.SIGKILL, runs.log.read_text()
            kills += 1
            where |= {p.parent.parent.name for p in _records(runs.folder / workdir)}
        runs.finish(workdir)
        assert made(runs.folder / workdir) == expected
        workdirs += 1
    return where


def _records(workdir):
    return workdir.glob(f"*/{artifact.UNFINISHED}/step.json")


def test_killed_at_random_moments(runs, undisturbed):
    killed(runs, undisturbed, random.Random(0), 6, "six")
    assert set(undisturbed[0]) == {
        "sampled/demonstrations.jsonl",
        "trained/metrics.jsonl",
        "trained/bits.txt",
        "trained_more/metrics.jsonl",
        "trained_more/bits.txt",
        "page/page.txt",
    }


@pytest.mark.nightly
def test_killed_at_fifty_random_moments(runs, undisturbed):
    where = killed(runs, undisturbed, random.Random(1), 50, "fifty")
    assert {"sampled", "trained", "trained_more"} <= where


def saved(folder, number):
    return folder / artifact.UNFINISHED / f"{number:08d}" / "position.json"


@pytest.mark.parametrize("step", ["sampled", "trained"])
def test_killed_where_there_is_something_to_go_on_from(runs, undisturbed, step):
    workdir = f"in-{step}"
    folder = runs.folder / workdir / step
    block = folder / artifact.UNFINISHED / "blocks" / "00000002.json"
    wanted = block if step == "sampled" else saved(folder, 10)
    assert runs.stopped(workdir, signal.SIGKILL, wanted.exists) == -signal.SIGKILL
    runs.finish(workdir)
    if step == "trained":
        assert re.search(r"goes on from checkpoint \d\d\n", runs.log.read_text())
    assert made(runs.folder / workdir) == undisturbed[0]


def test_terminated_it_saves_and_says_so_and_a_truncated_checkpoint_is_not_taken(runs, undisturbed):
    folder = runs.folder / "terminated" / "trained"
    assert runs.stopped("terminated", signal.SIGTERM, saved(folder, 10).exists) == 143
    assert runs.log.read_text().endswith("\nterminated in trained; the same command goes on\n")
    positions = sorted((folder / artifact.UNFINISHED).glob("*/position.json"))
    before, number = (int(position.parent.name) for position in positions[-2:])
    # Saved after the update at hand: no update that was made is lost.
    assert number == len((folder / "metrics.jsonl").read_text().splitlines()) >= 10
    files = [p for p in (positions[-1].parent / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    runs.finish("terminated")
    log = runs.log.read_text()
    assert f"trained: checkpoint {number} is damaged (state/" in log
    assert f"; goes on from checkpoint {before}\n" in log
    assert made(runs.folder / "terminated") == undisturbed[0]
