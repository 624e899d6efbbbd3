"""Runs of `cai_jax.run` by several processes of one device each, and what they made."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from world_models import WORDS, human, write_model

from cai_jax.core.metrics import read_metrics
from cai_jax.data.schema import Demonstration, Prompt, write_records

ROOT = Path(__file__).parents[1]
RUN = ("-m", "cai_jax.run")
CONFIG = """
from ml_collections import ConfigDict
from cai_jax.stages import step

def get_config():
    config = ConfigDict(sort_keys=False)
    config.seed = 3
    config.mesh = ConfigDict({{"data": {devices}, "fsdp": 1, "tensor": 1}})
    steps = config.steps = ConfigDict(sort_keys=False)
    model, prompts, devices = "model", "prompts.jsonl", {devices}
    short = dict(max_response_tokens=5, batch_size={devices})
    {steps}
    return config
"""
SHORT = """
    steps.sl = step("finetune", {"model": model, "data": "demonstrations.jsonl"}, rows=devices,
        sequence_length=32, epochs=30, log_every=1)
    steps.pairs = step("compare", {"model": "sl", "prompts": prompts}, **short)
"""
SLOWLY = "--config.steps.sl.checkpoints.every=1"  # the word of a signal takes about a second
SAMPLED = """
    steps.evaluation = step("evaluate", {"models": {"a": model, "b": model}, "red_team": prompts,
        "benign": prompts}, max_new_tokens=20, batch_size=16)
"""
RL = """
    steps.rl = step("ppo", {"model": model, "preference_model": "pm", "prompts": [prompts]},
        iterations=12, prompts_per_iteration=4, max_new_tokens=5, record_every=1, kl_target=0.1,
        score_normalization="running")
"""
WHOLE = """
    constitution = "sandbox:constitution.json"
    steps.chains = step("critique_revise", {"model": model, "prompts": prompts,
        "constitution": constitution}, num_rounds=1, num_few_shots=0, max_critique_tokens=4,
        max_revision_tokens=5, **short)
    steps.sl = step("finetune", {"model": model, "data": "chains"}, revisions=(1,), rows=4,
        sequence_length=32, epochs=3, log_every=1, learning_rate=1e-2)
    steps.pairs = step("compare", {"model": "sl", "prompts": prompts}, **short)
    steps.feedback = step("feedback", {"model": model, "pairs": "pairs",
        "constitution": constitution}, batch_size=4)
    steps.pm = step("preference", {"model": model, "comparisons": ["feedback"]}, pairs=4,
        log_every=1)
    steps.direct = step("dpo", {"model": "sl", "comparisons": ["feedback"]}, pairs=4,
        log_every=1, learning_rate=3e-4)
    steps.rl = step("ppo", {"model": "sl", "preference_model": "pm", "prompts": [prompts]},
        iterations=2, prompts_per_iteration=4, max_new_tokens=5, record_every=1)
    steps.evaluation = step("evaluate", {"models": {"sl": "sl", "rl": "rl"}, "red_team": prompts,
        "benign": prompts}, max_new_tokens=5, batch_size=4)
    steps.report = step("report", {"steps": list(steps)})
"""

# A run that says how many rows of each batch it filled.
COUNTING = """
import json, os, sys
from cai_jax import run
from cai_jax.data import comparisons, packing

def count(module, name, rows, batch):
    fill = getattr(module, name)

    def counted(*arguments):
        with open(f"filled-{hosts}-{host}.jsonl", "a") as file:
            file.write(json.dumps([name, len(arguments[rows]), arguments[batch]]) + "\\n")
        return fill(*arguments)

    setattr(module, name, counted)

given = dict(word.split("=") for word in sys.argv[1:])
hosts, host = given.get("--num_hosts", "1"), given.get("--host", "0")
count(packing, "fill", 1, 2)
count(comparisons, "fill_pairs", 0, 1)
run.main()
"""


def write_world(folder):
    """A tiny model and records, to run in a folder."""
    write_model(folder / "model")
    write_model(folder / "pm", seed=1, preference_model=True)
    dialogues = [human(f"tell me about the {word}") for word in WORDS]
    write_records(
        folder / "demonstrations.jsonl",
        [Demonstration(str(i), turns, "the bike. " * (i + 1)) for i, turns in enumerate(dialogues)],
    )
    write_records(folder / "prompts.jsonl", [Prompt(f"p{i}", d) for i, d in enumerate(dialogues)])


def write_config(folder, steps, devices):
    text = CONFIG.format(steps=steps.strip(), devices=devices)
    (folder / "config.py").write_text(text)


def compiled_as_usual(devices):
    """An environment without the flags that make tests compile faster: they round otherwise."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def run_alone(workdir, program=RUN):
    """The same run by one host of eight devices, in the present folder."""
    command = [sys.executable, *program, "--config=config.py", f"--workdir={workdir}"]
    subprocess.run(command, env=compiled_as_usual(8), check=True)


def start(folder, count, workdir, *flags, program=RUN):
    """Starts `cai_jax.run` as `count` hosts of one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = compiled_as_usual(1)
    command = [sys.executable, *program, "--config=config.py", f"--workdir={workdir}"]
    # Heartbeats need time on a machine that is busy; a host that is killed is noticed without.
    command += [f"--coordinator=localhost:{port}", f"--num_hosts={count}"]
    command += ["--heartbeat_timeout=600", *flags]
    return [
        subprocess.Popen(
            [*command, f"--host={i}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(processes, timeout=600):
    """[(status, stdout, stderr)] of all, each ended in time."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def spoken(stdout):
    """The lines of a run, without those of the library that connects its hosts."""
    return [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]


def kill_during(processes, victim, metrics, lines, number=signal.SIGKILL):
    """Sends one host a signal when a training has written so many lines."""
    wait_for(processes, lambda: metrics.is_file() and metrics.read_text().count("\n") >= lines)
    processes[victim].send_signal(number)


def wait_for(processes, there):
    while not there():
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def texts(workdir):
    """Every text artifact as one host writes it: name -> bytes; metrics apart, they are numbers."""
    found = {}
    for manifest in sorted(Path(workdir).glob("*/manifest.json")):
        for name in json.loads(manifest.read_text())["files"]:
            path = manifest.parent / name
            if path.suffix == ".jsonl" and path.name != "metrics.jsonl":
                whole = f"{manifest.parent.name}/{path.name.split('-0')[0].removesuffix('.jsonl')}"
                found[whole] = found.get(whole, b"") + path.read_bytes()
    return found


# Gradients of four hosts are added up in another order than those of four devices of one, and PPO's
# numbers follow them: how far they may be apart.
ROUNDED = {"score": 2e-5, "kl": 2e-5}


def check_same(several, one):
    """Holds texts to bytes but for ROUNDED numbers, and losses to 1e-5."""
    found, expected = ([*map(apart, texts(of).items())] for of in (several, one))
    assert [of[:2] for of in found] == [of[:2] for of in expected]
    for (name, _, numbers), (_, _, of_one) in zip(found, expected, strict=True):
        for (key, x), (_, y) in zip(numbers, of_one, strict=True):
            assert x == pytest.approx(y, abs=ROUNDED[key]), (name, key)
    for path in Path(one).glob("*/metrics.jsonl"):
        lines = read_metrics(Path(several) / path.parent.name)
        for line, of_one in zip(lines, read_metrics(path.parent), strict=True):
            assert line == pytest.approx(of_one, rel=1e-5, abs=1e-6)


def apart(file):
    """(name, its lines without ROUNDED numbers, these numbers) of a (name, bytes)."""
    name, content = file
    numbers = []

    def without(pairs):
        numbers.extend((key, value) for key, value in pairs if key in ROUNDED)
        return [(key, ROUNDED.get(key, value)) for key, value in pairs]

    lines = [json.loads(line, object_pairs_hook=without) for line in content.splitlines()]
    return name, lines, numbers
