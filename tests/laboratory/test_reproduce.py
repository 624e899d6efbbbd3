"""The command itself, at quick scale: one figure, then nothing to do, then read alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def reproduce(workdir, *flags):
    command = [sys.executable, "-m", "cai_jax.reproduce", f"--workdir={workdir}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=workdir.parent, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@pytest.mark.nightly
def test_a_figure_is_run_once_and_read_again(tmp_path):
    workdir = tmp_path / "figures"
    flags = ("--figures=12", "--seeds=1")
    lines = reproduce(workdir, *flags)
    steps = [line.split()[2] for line in lines if line.startswith("seed 0 ")]
    assert sorted(steps) == sorted(
        f"{kind}_{size}" for kind in ("critiqued", "judged_chains") for size in ("xs", "s", "m")
    )
    found = json.loads((workdir / "claims.json").read_text())
    named, fine = found["figures"]["12"]["ours"][0]["curves"]
    assert named["x"] == [55.5, 104.7, 208.3]
    assert 0.9 < named["y"][2]["value"] <= 1.0 and named["y"][2]["low"] is None
    assert {claim["verdict"] for claim in found["claims"]} == {"not tested"}
    page = (workdir / "index.html").read_bytes()
    again = reproduce(workdir, *flags, "--read_only")
    assert not any(line.startswith("seed") for line in again)
    assert (workdir / "index.html").read_bytes() == page
    assert not any(line.startswith("seed") for line in reproduce(workdir, *flags))
