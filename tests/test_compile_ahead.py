"""The command, on simulated devices in this process, and with libtpu where it is installed."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from world_models import write_model

from cai_jax import compile_ahead, estimates
from cai_jax.core import topology
from cai_jax.core.hlo_costs import Costs

ROOT = Path(__file__).parents[1]
ROWS, T, D, N, H, F = 8, 8, 16, 2, 8, 16

CONFIG = """
from ml_collections import ConfigDict
from cai_jax.stages import step

def get_config():
    config = ConfigDict({{"seed": 0, "mesh": {{"data": 1, "fsdp": 1, "tensor": 1}}}})
    config.steps = ConfigDict(sort_keys=False)
    config.steps.sl_cai = step("finetune", {{"model": {model!r}, "data": "d.jsonl"}},
        rows={rows}, sequence_length={length}, **{finetune})
    config.steps.answers = step("compare", {{"model": "sl_cai", "prompts": "p.jsonl"}},
        batch_size=8, max_response_tokens=6)
    config.steps.pm = step("preference", {{"model": "sl_cai", "comparisons": "c.jsonl"}},
        pairs=8, sequence_length=8)
    config.steps.rl_cai = step("ppo",
        {{"model": "sl_cai", "preference_model": "pm", "prompts": "p.jsonl"}},
        prompts_per_iteration=8, samples_per_prompt=1, baseline="none", minibatches=1,
        epochs=1, max_prompt_tokens=6, max_new_tokens=4)
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    model = str(write_model(folder / "model"))
    path = folder / "config.py"
    path.write_text(CONFIG.format(model=model, rows=ROWS, length=T, finetune={}))
    return path, model


def run(capsys, config, *flags):
    compile_ahead.main([f"--config={config[0]}", *flags])
    out, err = capsys.readouterr()
    return json.loads(out), err


def refused(capsys, config, *flags):
    with pytest.raises(SystemExit) as stop:
        run(capsys, config, *flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def vocabulary(config):
    return json.loads((Path(config[1]) / "config.json").read_text())["vocab_size"]


def test_finetune_on_one_device_has_the_flops_of_the_arithmetic(capsys, config, vocabulary):
    found, _ = run(capsys, config, "--topology=cpu:1", "--step=finetune")
    tokens, weights = ROWS * T, 4 * D * N * H + 3 * D * F
    of_logits = 2 * tokens * vocabulary * D
    attention = 2 * (2 * ROWS * N * T * T * H)
    # Forward, and backward twice that; the embedding's gradient is a product with one-hot rows.
    assert found["flops"] == 3 * (2 * tokens * weights + attention + of_logits) + of_logits
    assert found["useful_flops"] == 6 * tokens * found["parameters"]
    assert found["collective_bytes"] == {} and found["tokens"] == tokens
    # Parameters and two moments in float32, a batch of five arrays, counters.
    assert 0 <= found["arguments_bytes"] - 12 * found["parameters"] - 20 * tokens < 1024
    assert found["peak_bytes"] >= found["arguments_bytes"] + found["temporaries_bytes"]
    assert found["held_bytes"] == 4 * found["parameters"]
    assert found["fits"] is None and found["estimated_seconds"] is None


def test_four_devices_share_the_work_and_the_state(capsys, config):
    long = "--config.steps.sl_cai.sequence_length=256"  # activations are most of what is held
    one, _ = run(capsys, config, "--topology=cpu:1", "--step=sl_cai", long)
    four, table = run(capsys, config, "--topology=cpu:4", "--step=finetune", "--arrays", long)
    # The mesh of the config is of one device: all others go to fsdp.
    assert four["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert four["flops"] == pytest.approx(one["flops"] / 4, rel=0.01)
    assert four["arguments_bytes"] == pytest.approx(one["arguments_bytes"] / 4, rel=0.02)
    # No state of the optimizer and no activation is held whole; weights are, one at a time.
    assert four["temporaries_bytes"] < 1.1 * one["temporaries_bytes"] / 4
    assert one["temporaries_bytes"] > 100 * four["arguments_bytes"]
    assert four["collective_bytes"]["all-gather"] > 0
    lines = table.splitlines()
    (query,) = [line.split() for line in lines if " 0/params/layers/attention/query " in line]
    assert query == [
        *(f"{D * N * H * 4 // 4}", "0/params/layers/attention/query"),
        *(f"float32[1,{D},{N},{H}]", "None,", "fsdp,", "tensor,", "None"),
    ]
    total = int(lines[-1].split()[0].replace(",", ""))
    assert total == pytest.approx(four["arguments_bytes"], rel=0.01)


def test_ppo_holds_what_it_does_not_change_and_counts_every_token(capsys, config, vocabulary):
    found, _ = run(capsys, config, "--topology=cpu:2", "--step=ppo")
    rollout, update = found["programs"]
    assert (rollout["name"], update["name"]) == ("rollout", "update")
    # The reference and the preference model stay while the update runs: two of about P / 2 each.
    assert update["held_bytes"] == pytest.approx(2 * 4 * found["parameters"] / 2, rel=0.05)
    assert found["flops"] == rollout["flops"] + update["flops"]
    assert found["peak_bytes"] == max(rollout["peak_bytes"], update["peak_bytes"])
    # Of 4 rows on a device, with prompts of 6 tokens and 4 new ones. Of the 10 of a row the only
    # layer makes keys and values, and the rest for the last 5, whose states are asked for.
    weights, of_logits = 4 * D * N * H + 3 * D * F, 2 * vocabulary * D
    evaluated = 10 * 2 * D * N * H + 5 * (2 * D * N * H + 3 * D * F)
    attention = 3 * 2 * (2 * N * 5 * 10 * H)
    # Of one chunk of logits the compiler sees that the backward pass makes the same ones again; the
    # embedding's gradient as products with one-hot rows.
    expected = 4 * (3 * 2 * evaluated + attention + 3 * 4 * of_logits + 10 * of_logits)
    assert update["flops"] == pytest.approx(expected, rel=0.002)
    # 9 tokens into the cache, of which 4 have logits: one in each round of a loop that ends on
    # data; those evaluated by the reference, 4 with logits; one more by the preference model. The
    # policy is evaluated by the update, whose one minibatch holds all responses.
    scored = evaluated + 2 * D * N * H
    expected = 4 * (2 * (9 * weights + scored + evaluated) + 2 * 4 * of_logits)
    assert expected < rollout["flops"] < 1.2 * expected


def test_preference_and_decode_compile(capsys, config):
    found, _ = run(capsys, config, "--topology=cpu:2", "--step=preference")
    assert found["batch"] == {"pairs": 8} and found["tokens"] == 8 * 2 * 8
    found, _ = run(capsys, config, "--topology=cpu:2", "--step=decode")
    prefill, decode = found["programs"]
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    assert decode["tokens"] == 8 * 6 and found["step"] == "answers"
    # At least two FLOPs a parameter and token generated, of all rows and tokens.
    assert decode["flops"] * 2 >= 2 * found["parameters"] * 8 * 6


def test_slots_are_written_where_they_are(capsys, config):
    """No device is sent the keys and values of the slots that another one has."""
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    found, _ = run(capsys, config, "--topology=cpu:4", "--step=decode", *mesh)
    _, decode = found["programs"]
    assert decode["collective_bytes"]["all-gather"] < 0.01 * decode["arguments_bytes"]


def test_a_sweep_prints_all_and_returns_the_best(capsys, config, monkeypatch):
    monkeypatch.setattr(compile_ahead, "SWEPT_BATCHES", (1,))
    found, err = run(capsys, config, "--topology=cpu:2", "--step=finetune", "--sweep")
    tried = [json.loads(line) for line in err.splitlines()]
    assert tried == found["tried"]
    assert [line["mesh"]["tensor"] for line in tried] == [1, 2]
    assert [line["batch"]["rows"] for line in tried] == [2, 1]
    assert found["mesh"] in [line["mesh"] for line in tried]


def test_what_does_not_divide_is_refused_by_name(capsys, config):
    mesh = ("--config.mesh.fsdp=1", "--config.mesh.tensor=4")
    line = refused(capsys, config, "--topology=cpu:4", *mesh)
    assert "axis 2 of size 2 does not divide over 4 devices" in line and "attention/" in line
    line = refused(capsys, config, "--topology=cpu:8", "--config.steps.sl_cai.rows=3")
    assert "no mesh of 8 devices divides this step: rows: expected a multiple of 8" in line
    line = refused(capsys, config, "--topology=cpu:8", "--config.mesh.fsdp=4")
    assert "takes 4 of the 8 devices of cpu:8" in line
    line = refused(capsys, config, "--topology=cpu:1", "--step=feedback")
    assert "--step=feedback: expected one of answers, decode, finetune" in line
    assert "expected v4:AxBxC" in refused(capsys, config, "--topology=v5p:4x4")
    assert "unknown flag --topologies" in refused(
        capsys, config, "--topology=cpu:1", "--topologies=1"
    )


def test_collectives_run_beside_the_rest_in_the_estimate():
    chip = topology.Chip("a chip", flops=100.0, memory=10, bandwidth=10.0, links=2.0)
    found = estimates.roofline(Costs(200.0, 50.0, {"all-gather": 9.0}, 8.0, 0, 6.0), chip)
    assert found["seconds_by_resource"] == {"arithmetic": 2.0, "hbm": 5.0, "collectives": 4.0}
    assert (found["estimated_seconds"], found["seconds_without_overlap"]) == (6.0, 10.0)
    slow = chip._replace(links=1.0)
    found = estimates.roofline(Costs(200.0, 50.0, {"all-gather": 9.0}, 8.0, 0, 6.0), slow)
    assert found["estimated_seconds"] == 8.0


def test_what_a_compiler_says_of_memory():
    message = "RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    assert estimates.out_of_memory(message) == int(20.5 * 2**30)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'cai_jax[tpu]'"
)
def test_a_tpu_program_without_a_tpu(config):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cai_jax.compile_ahead", f"--config={config[0]}"),
            *("--topology=v5e:2x2", "--step=finetune"),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 4 and found["fits"] is True
    assert 0 < found["estimated_seconds"] < 1 and 0 < found["estimated_mfu"] < 1
    useful = found["useful_flops"] / 4
    assert 0.9 * useful < found["flops"] < 3 * useful
    assert found["peak_bytes"] < 2**30 and math.isfinite(found["hbm_bytes"])
