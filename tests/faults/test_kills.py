"""Runs that are killed anywhere and started again end with what an undisturbed run makes: text byte
for byte, weights bit for bit.

The moments come from a seed: a step, and a share of the time that it took undisturbed.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cai_jax import checkpoints
from cai_jax.core import artifact

HERE = Path(__file__).parent
STEPS = ("revisions", "sl_cai", "compare", "feedback", "preference", "rl_cai")
TRAINED = ("sl_cai", "preference", "rl_cai")
PATIENCE = 300  # seconds that a run may take on a busy machine


class Runs:
    """Starts runs of the tiny pipeline, one at a time."""

    def __init__(self, folder):
        self.folder = folder
        paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "forking.py")],
            env=os.environ
            | {"PYTHONPATH": paths, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout.readline() == "ready\n"

    def start(self, workdir, *arguments):
        """The id of the process of a new run."""
        self.log = self.folder / f"{workdir}.log"
        given = [f"--config={HERE / 'tiny_pipeline.py'}", f"--workdir={self.folder / workdir}"]
        line = json.dumps({"arguments": [*given, *arguments], "log": str(self.log)})
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def end(self):
        """How the run ended: its exit status, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))

    def to_the_end(self, workdir, *arguments):
        self.start(workdir, *arguments)
        assert self.end() == 0, self.log.read_text()

    def stop_in(self, workdir, step, seconds, number):
        """Sends a signal so long after the step has begun; whether the step was still unfinished,
        and how the run ended."""
        process = self.start(workdir)
        folder, deadline = self.folder / workdir / step, time.monotonic() + PATIENCE
        while not (folder / artifact.UNFINISHED / "step.json").exists():
            assert time.monotonic() < deadline, self.log.read_text()
            if artifact.is_finished(folder):
                break
            time.sleep(0.002)
        time.sleep(seconds)
        unfinished = not artifact.is_finished(folder)
        os.kill(process, number)  # a process that has ended is there until it is waited for
        return unfinished, self.end()

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def undisturbed(runs):
    runs.to_the_end("undisturbed")
    return made(runs.folder / "undisturbed")


def made(workdir):
    """What a run made: hashes of its text files, and of the bits of its models."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if path.is_dir() and path.name == "params":
            arrays = jax.tree.leaves(checkpoints.load_model(path.parent).params)
            bits = b"".join(np.asarray(leaf).tobytes() for leaf in arrays)
            found[str(name)] = hashlib.sha256(bits).hexdigest()
        # Manifests have times, and so have Orbax's own files.
        elif (
            path.is_file()
            and "params" not in name.parts
            and len(name.parts) > 1
            and path.name != artifact.MANIFEST
        ):
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def seconds_of(runs, step):
    return artifact.read_manifest(runs.folder / "undisturbed" / step)["seconds"]


def killed_and_finished(runs, workdir, moments):
    """Kills a run at each of the (step, share) in turn; how many kills found their step at work."""
    hits = 0
    for step, share in moments:
        at_work, ended = runs.stop_in(workdir, step, share * seconds_of(runs, step), signal.SIGKILL)
        hits += at_work and ended == -signal.SIGKILL
    runs.to_the_end(workdir)
    return hits


def test_the_undisturbed_run_makes_everything(undisturbed):
    names = set(undisturbed)
    assert {f"{step}/metrics.jsonl" for step in TRAINED} <= names
    assert {f"{step}/model/params" for step in TRAINED} <= names
    assert {"rl_cai/snapshots/step-0004/params", "rl_cai/rollouts.jsonl"} <= names
    assert {"revisions/chains.jsonl", "feedback/comparisons.jsonl"} <= names
    assert not any("unfinished" in name for name in names)


def test_killed_in_every_step(runs, undisturbed):
    draw = random.Random(0)
    moments = [(step, draw.uniform(0.1, 0.8)) for step in STEPS]
    # A machine that is busy now and was not then may finish a step before its moment has come.
    assert killed_and_finished(runs, "killed", moments) >= 4
    assert made(runs.folder / "killed") == undisturbed


def test_terminated_then_damaged(runs, undisturbed):
    share = 0.7 * seconds_of(runs, "rl_cai")
    at_work, ended = runs.stop_in("terminated", "rl_cai", share, signal.SIGTERM)
    assert at_work and ended == 143, runs.log.read_text()
    assert runs.log.read_text().endswith("terminated in rl_cai; the same command goes on\n")
    folder = runs.folder / "terminated" / "rl_cai"
    saved = sorted((folder / artifact.UNFINISHED).glob("*/position.json"))
    assert saved
    largest = max((saved[-1].parent / "state").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    runs.to_the_end("terminated")
    number = int(saved[-1].parent.name)
    assert f"rl_cai: checkpoint {number} is damaged (state/" in runs.log.read_text()
    assert made(runs.folder / "terminated") == undisturbed


@pytest.mark.nightly
def test_killed_at_fifty_moments(runs, undisturbed):
    draw = random.Random(1)
    hits = 0
    for number in range(3):
        moments = [(step, draw.uniform(0, 1)) for step in STEPS for _ in range(4)]
        hits += killed_and_finished(runs, f"killed-{number}", moments)
        assert made(runs.folder / f"killed-{number}") == undisturbed
    assert hits >= 50
