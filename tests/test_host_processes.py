"""Several hosts as real processes with CPU collectives: what they make, killed and gone on with."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from several_hosts import (
    COUNTING,
    RL,
    SAMPLED,
    SHORT,
    SLOWLY,
    WHOLE,
    check_same,
    finish,
    kill_during,
    run_alone,
    spoken,
    start,
    texts,
    wait_for,
    write_config,
    write_world,
)
from world_models import WORDS, human

from cai_jax import checkpoints, hosts
from cai_jax.core.metrics import read_metrics
from cai_jax.data.schema import Prompt, write_records

pytestmark = pytest.mark.nightly

PROMPTS = 300  # that four blocks take longer than the word of a signal


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a tiny model and records, to run in."""
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("steps", "name", "count"),
    [(SHORT, "sl", 2), (RL, "rl", 2), (SHORT, "sl", 4)],
    ids=["finetune", "ppo", "finetune-of-four"],
)
def test_hosts_of_which_one_is_killed_in_training_go_on_to_their_bits_and_the_texts_of_one(
    world, steps, name, count
):
    write_config(world, steps, count)
    often = f"--config.steps.{name}.checkpoints.every=2"
    # Others may wait for it in a checkpoint, where the heartbeat alone tells that it is gone.
    heartbeat = f"--heartbeat_timeout={hosts.HEARTBEAT_SECONDS}"
    processes = start(world, count, "several", often, heartbeat)
    kill_during(processes, 1, world / "several" / name / "metrics.jsonl", lines=6)
    since = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - since < 3 * hosts.HEARTBEAT_SECONDS
    for index, (status, _, said) in enumerate(ended):
        assert status == -9 if index == 1 else status not in (0, None), said
        gone = f"error: host {index} of {count}: another host is gone"
        assert index == 1 or gone in said or "another task died" in said
    assert not (world / "several" / name / "manifest.json").exists()

    (first, shown, said), *others = finish(start(world, count, "several", often))
    assert [first, *(status for status, *_ in others)] == [0] * count, said
    assert said.startswith(f"{name}: ") and "goes on from checkpoint " in said
    assert [line.split()[0] for line in spoken(shown)[:1]] == [name]
    assert [spoken(silent) for _, silent, _ in others] == [[]] * (count - 1)
    if name == "sl":
        assert sorted(path.name for path in (world / "several" / "pairs").glob("*.jsonl")) == [
            f"pairs-0000{index}-of-0000{count}.jsonl" for index in range(count)
        ]

    for status, _, said in finish(start(world, count, "undisturbed", often)):
        assert status == 0, said
    assert texts("several") == texts("undisturbed")
    assert read_metrics(world / "several" / name) == read_metrics(world / "undisturbed" / name)
    killed, undisturbed = (
        jax.tree.map(np.asarray, checkpoints.load_model(world / of / name).params)
        for of in ("several", "undisturbed")
    )
    jax.tree.map(np.testing.assert_array_equal, killed, undisturbed)

    run_alone("one")
    # Pairs of equal responses are left out, and a random model hardly makes them.
    if name == "sl":
        assert len(texts("one")["pairs/pairs"].splitlines()) > len(WORDS) / 2
    check_same("several", "one")


@pytest.mark.parametrize("count", [2, 4])
def test_the_whole_pipeline_on_several_hosts_makes_the_texts_of_one(world, count):
    write_config(world, WHOLE, count)
    (world / "counting.py").write_text(COUNTING)
    program = ("counting.py",)
    for status, _, said in finish(start(world, count, "several", program=program), timeout=1800):
        assert status == 0, said
    run_alone("one", program)
    whole, *parts = [
        [json.loads(line) for line in (world / f"filled-{of}.jsonl").read_text().splitlines()]
        for of in ("1-0", *(f"{count}-{host}" for host in range(count)))
    ]
    # Batches are of four rows, and each host fills its own.
    assert {(name, size) for name, _, size in whole} == {("fill", 4), ("fill_pairs", 4)}
    for (name, filled, _), of_hosts in zip(whole, zip(*parts, strict=True), strict=True):
        assert [of[0] for of in of_hosts] == [name] * count
        assert [of[2] for of in of_hosts] == [4 // count] * count
        assert sum(of[1] for of in of_hosts) == filled
    names = {"chains/chains", "pairs/pairs", "feedback/comparisons", "rl/rollouts", "rl/samples"}
    assert set(texts("one")) == names | {"evaluation/samples"}
    check_same("several", "one")


def test_a_bad_record_is_one_line_of_every_host(world):
    lines = (world / "demonstrations.jsonl").read_text()
    (world / "demonstrations.jsonl").write_text(f"{lines}nonsense")
    write_config(world, SHORT, 4)
    where = f"step 'sl': inputs.data: demonstrations.jsonl:{len(WORDS) + 1}"
    expected = f"{where}: expected one JSON object, found 'nonsense'"
    for index, (status, _, said) in enumerate(finish(start(world, 4, "several"))):
        assert status == 2 and said.count("error: ") == 1, said
        assert f"error: host {index} of 4: {expected}" in said


def test_when_the_first_host_is_killed_the_others_stop(world):
    write_config(world, SHORT, 2)
    processes = start(world, 2, "two")
    kill_during(processes, 0, world / "two" / "sl" / "metrics.jsonl", lines=3)
    (killed_by, _, _), (status, _, said) = finish(processes, timeout=60)
    assert killed_by == -9 and status not in (0, None)
    # The coordinator goes with it: either of the two is noticed first.
    assert "another host is gone" in said or "another task died" in said


def test_one_of_two_hosts_is_terminated_in_training_and_any_number_goes_on(world):
    write_config(world, SHORT, 2)
    processes = start(world, 2, "two", SLOWLY)
    metrics = world / "two" / "sl" / "metrics.jsonl"
    kill_during(processes, 1, metrics, 3, signal.SIGTERM)
    asked = time.monotonic()
    for status, _, said in finish(processes, timeout=120):
        assert status == 143, said
        assert "terminated in sl; the same command goes on" in said
    assert time.monotonic() - asked < 30  # of the grace period, on a busy machine
    # They agree: the update that is saved is the last that both made.
    saved = sorted((world / "two" / "sl" / "unfinished").glob("*/position.json"))
    done = metrics.read_text().count("\n")
    assert int(saved[-1].parent.name) == done >= 3
    shutil.copytree(world / "two", world / "alone")

    run_alone("one")
    spoken_of = []
    for workdir, count, flags in (("two", 2, ()), ("alone", 1, ("--config.mesh.data=1",))):
        for status, _, said in finish(start(world, count, workdir, *flags)):
            assert status == 0, said
            spoken_of.append(f"sl: goes on from checkpoint {done}" in said)
        check_same(workdir, "one")
    assert spoken_of == [True, False, True]  # by the first host


def test_what_one_host_began_two_end(world):
    write_config(world, SHORT, 2)
    processes = start(world, 1, "several", "--config.mesh.data=1", SLOWLY)
    metrics = world / "several" / "sl" / "metrics.jsonl"
    kill_during(processes, 0, metrics, 3, signal.SIGTERM)
    [(status, _, said)] = finish(processes)
    assert status == 143, said
    for status, _, said in finish(start(world, 2, "several")):
        assert status == 0, said
    run_alone("one")
    check_same("several", "one")


def test_hosts_that_sample_stop_together_and_keep_whole_blocks(world):
    turns = [human(f"tell me about line {i}") for i in range(PROMPTS)]
    write_records(world / "prompts.jsonl", [Prompt(f"p{i}", t) for i, t in enumerate(turns)])
    write_config(world, SAMPLED, 2)
    processes = start(world, 2, "two")
    blocks = world / "two" / "evaluation" / "unfinished" / "blocks"
    wait_for(processes, (blocks / "00000000.json").exists)
    processes[0].send_signal(signal.SIGTERM)
    for status, _, said in finish(processes, timeout=120):
        assert status == 143, said
        assert "terminated in evaluation; the same command goes on" in said
    assert [*blocks.glob("*.json")] and not (blocks / "00000003.json").exists()
    kept = (blocks / "00000000.jsonl").read_bytes()
    for status, _, said in finish(start(world, 2, "two")):
        assert status == 0, said
    assert texts("two")["evaluation/samples"].startswith(kept)
    run_alone("one")
    check_same("two", "one")
