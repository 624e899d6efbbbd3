import io
import struct
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import monitoring
from cai_jax.core.metrics import MetricsWriter, read_metrics
from cai_jax.errors import InputError


def watch(**changes):
    config = monitoring.default_config()
    config.update(changes)
    return config


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def devices(kind, count):
    return SimpleNamespace(
        size=count, devices=np.array([SimpleNamespace(device_kind=kind)] * count, dtype=object)
    )


def test_rates_are_between_two_lines_and_the_line_comes_after_the_time_asked_for():
    clock, stream = Clock(), io.StringIO()
    heart = monitoring.Heartbeat("sl_cai", 60.0, 2e-6, stream, clock)
    clock.now = 50.0
    assert heart.beat(10, 5_000) == {}  # compilation is before it
    clock.now = 60.0
    assert heart.beat(20, 15_000, 2.0) == {"tokens_per_second": 1000.0, "mfu": 0.002}
    clock.now = 64.0
    assert heart.beat(30, 1_015_000, 1.5) == {"tokens_per_second": 250_000.0, "mfu": 0.5}
    clock.now = 119.0
    heart.beat(40, 1_025_000)
    assert stream.getvalue() == "sl_cai: update 20, loss 2.0000, 1,000 tokens/s, MFU 0.2 %\n"
    clock.now = 124.0
    heart.beat(50, 1_026_000)
    assert stream.getvalue().splitlines()[1] == "sl_cai: update 50, 200 tokens/s, MFU 0.0 %"


def test_no_line_unless_asked_for_and_no_mfu_where_the_peak_is_unknown():
    clock, stream = Clock(), io.StringIO()
    heart = monitoring.Heartbeat("x", 0.0, None, stream, clock)
    heart.beat(1, 0)
    clock.now = 1e6
    assert heart.beat(2, 10_000_000) == {"tokens_per_second": 10.0}
    assert stream.getvalue() == ""


def test_mfu_is_of_the_published_peak_of_all_chips():
    # 8e9 parameters, 6 FLOPs each; sixteen chips of 197e12: a token a second is 48e9 / 3152e12.
    flops = monitoring.training_flops({"w": SimpleNamespace(size=8 * 10**9)})
    assert monitoring.mfu_per_token(flops, devices("TPU v5 lite", 16)) == 48e9 / 3152e12
    assert monitoring.mfu_per_token(1.0, devices("NVIDIA H100 80GB HBM3", 1)) == 1 / 989e12
    assert monitoring.mfu_per_token(1.0, devices("TPU v6 lite", 2)) == 1 / 1836e12
    assert monitoring.mfu_per_token(1.0, devices("cpu", 2)) is None


def test_frozen_parameters_cost_no_gradients_of_their_own():
    factors, frozen = {"a": np.zeros((2, 5))}, {"w": np.zeros((10, 10))}
    assert monitoring.training_flops(factors, frozen) == 6 * 10 + 4 * 100


def test_rates_are_not_in_the_artifact(tmp_path, capsys):
    config = watch(heartbeat_seconds=1e-9)
    with MetricsWriter(tmp_path, config, 1e-9) as writer:
        for step in (1, 2, 3):
            writer.write(step, loss=0.5, tokens=100 * step)
    assert read_metrics(tmp_path)[1] == {"step": 2, "loss": 0.5, "tokens": 200}
    assert f"{tmp_path.name}: update 3, loss 0.5000, " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_chosen_updates_are_profiled_and_all_are_passed_on(tmp_path):
    def program(name):
        def add(x):
            return x + 1

        add.__name__ = name
        return jax.jit(add)

    x, seen = jnp.zeros(4), []
    for number, name in monitoring.profiled(
        enumerate(["one", "two", "three", "four"], start=1), (2, 3), tmp_path / "sl"
    ):
        x = program(f"update_{name}")(x).block_until_ready()
        seen.append(number)
    assert seen == [1, 2, 3, 4] and x.tolist() == [4, 4, 4, 4]
    logs = tmp_path / "_logs" / "sl"
    (trace,) = logs.glob("plugins/profile/*/*.xplane.pb")
    # What ran, not which programs there are: those are listed too.
    ran = {
        event.name
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    }
    present = [
        name
        for name in ("one", "two", "three", "four")
        if any(f"update_{name}" in event for event in ran)
    ]
    assert present == ["two", "three"]


def test_without_chosen_updates_nothing_is_recorded(tmp_path):
    numbered = enumerate("ab", start=1)
    assert list(monitoring.profiled(numbered, (0, 0), tmp_path / "s")) == [(1, "a"), (2, "b")]
    assert list(tmp_path.iterdir()) == []


def scalars_of(path):
    """{(step, tag): value} of a TensorBoard file: records of length, two checksums and a proto."""
    from tensorboardX.proto.event_pb2 import Event

    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
        at += length + 16
    return found


def test_tensorboard_gets_what_the_file_gets(tmp_path):
    pytest.importorskip("tensorboardX", reason="an extra: cai_jax[tensorboard]")
    folder = tmp_path / "sl_cai"
    folder.mkdir()
    with MetricsWriter(folder, watch(writers=("tensorboard",))) as writer:
        writer.write(7, loss=0.25, bad=float("nan"))
    (path,) = (tmp_path / "_logs" / "sl_cai").glob("events.out.tfevents.*")
    assert scalars_of(path) == {(7, "loss"): 0.25}


def test_wandb_gets_the_metrics_under_the_name_of_the_step(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda scalars, step: calls.append((step, scalars)),
        finish=lambda: calls.append("finished"),
    )
    fake = SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "demo" / "sl_cai"
    folder.mkdir(parents=True)
    with MetricsWriter(folder, watch(writers=("wandb",))) as writer:
        writer.write(3, loss=0.5)
    logs = str(tmp_path / "demo" / "_logs" / "sl_cai")
    assert calls == [
        {"name": "sl_cai", "group": "demo", "dir": logs},
        (3, {"loss": 0.5}),
        "finished",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"writers": ("tensorflow",)}, "expected some of tensorboard, wandb, found 'tensorflow'"),
        ({"heartbeat_seconds": -1.0}, "heartbeat_seconds: expected 0 or more, found -1.0"),
        ({"profile_steps": (0, 3)}, "expected the first and the last update, as 10,12, or 0,0"),
        ({"profile_steps": (5, 3)}, "found 5,3"),
        ({"profile_steps": (5,)}, "found 5"),
    ],
    ids=["writer", "heartbeat", "first", "order", "one"],
)
def test_what_means_nothing_is_refused(changes, message):
    monitoring.check(monitoring.default_config())
    with pytest.raises(InputError, match=message):
        monitoring.check({**monitoring.default_config(), **changes})


def test_a_writer_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(monitoring.WRITERS, "wandb", "no_such_module_anywhere")
    with pytest.raises(InputError, match=r"pip install 'cai_jax\[wandb\]'"):
        monitoring.check(watch(writers=("wandb",)))
