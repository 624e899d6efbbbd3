"""Several hosts: who they are, and what each writes and says."""

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from world_models import human

from cai_jax import hosts
from cai_jax.core.mesh import make_mesh
from cai_jax.core.metrics import MetricsWriter, read_metrics
from cai_jax.core.sharding import batch_sharding
from cai_jax.data import rows
from cai_jax.data.schema import Prompt, json_lines, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.models import placing

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        (("10.0.0.1:99", 4, 3), {}, hosts.Hosts("10.0.0.1:99", 4, 3)),
        (("10.0.0.1:99", 1, 0), {}, None),
        (("auto", None, None), {}, hosts.Hosts("auto")),
        (
            (None, None, None),
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            hosts.Hosts("a:1", 2, 1),
        ),
        (
            (None, None, None),
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "2",
            },
            hosts.Hosts("a:1", 4, 2),
        ),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "2"}, hosts.Hosts("auto")),
        # An interactive allocation, or a job of one task.
        ((None, None, None), {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "t0,t1"}, hosts.Hosts("auto")),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ((None, None, None), {"MEGASCALE_NUM_SLICES": "2"}, hosts.Hosts("auto")),
        # Flags go before the environment.
        (("b:1", 2, 0), {"SLURM_STEP_NUM_TASKS": "2"}, hosts.Hosts("b:1", 2, 0)),
    ],
    ids=[
        *("none", "flags", "one", "auto", "jax", "jobset", "slurm", "slurm-one", "gke", "tpu-one"),
        *("multislice", "flags-first"),
    ],
)
def test_hosts_are_asked_for_by_flags_or_by_the_environment(flags, environment, expected):
    assert hosts.asked(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a:1", 2, None), {}, "--coordinator=HOST:PORT, --num_hosts and --host together"),
        ((None, 2, 1), {}, "--coordinator=HOST:PORT, --num_hosts and --host together"),
        (("a:1", 2, 2), {}, "expected 0 to 1 of 2 hosts, found 2"),
        (("a", 2, 1), {}, "expected HOST:PORT, found 'a'"),
        (
            (None, None, None),
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
            "expected numbers in JAX_NUM_PROCESSES",
        ),
    ],
    ids=["half", "no-address", "index", "port", "environment"],
)
def test_half_of_what_is_needed_is_refused(flags, environment, message):
    with pytest.raises(InputError, match=message):
        hosts.asked(*flags, environment)


def as_host(monkeypatch, index, count):
    monkeypatch.setattr(hosts, "index", lambda: index)
    monkeypatch.setattr(hosts, "count", lambda: count)


class Ended(BaseException):
    """In the place of the process's end."""


GONE = RuntimeError("Gloo all-reduce failed: Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            InputError("prompts.jsonl:3: expected a\nprompt"),
            2,
            "prompts.jsonl:3: expected a prompt",
        ),
        (FloatingPointError("update 3: loss is nan"), 1, "update 3: loss is nan"),
        (GONE, 1, "another host is gone (Gloo all-reduce failed: Connection reset by peer); what"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError; the other hosts stop too"),
        (SystemExit(143), 143, None),  # has been said
    ],
    ids=["input", "diverged", "gone", "bug", "terminated"],
)
def test_each_host_says_its_error_with_its_number_and_ends_without_waiting(
    monkeypatch, capsys, error, status, said
):
    as_host(monkeypatch, 1, 2)
    joined = []

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(hosts, "join", lambda *given: joined.append(given))
    monkeypatch.setattr(hosts.os, "_exit", end)
    two = hosts.Hosts("a:1", 2, 1)
    with pytest.raises(Ended) as ended, hosts.together(two, 7):
        raise error
    assert joined == [(two, 7)] and ended.value.args == (status,)
    *before, line = capsys.readouterr().err.splitlines() or [""]
    assert line.startswith(f"error: host 1 of 2: {said}" if said else "")
    # Only what is a mistake of ours shows where it was made.
    assert bool(before) == isinstance(error, ZeroDivisionError)


def test_alone_an_error_goes_its_way():
    with pytest.raises(ZeroDivisionError), hosts.together(None):
        raise ZeroDivisionError


@pytest.mark.parametrize("total", [0, 1, 3, 4, 10])
def test_shares_are_all_records_once_and_in_order(monkeypatch, total):
    found = []
    for index in range(4):
        as_host(monkeypatch, index, 4)
        found += range(total)[hosts.share(total)]
    assert found == list(range(total))


def records(count):
    return [Prompt(f"p{i}", human(f"tell me about line {i}")) for i in range(count)]


def test_shards_together_are_the_file_of_one_host(monkeypatch, tmp_path):
    write_records(tmp_path / "one.jsonl", records(7))
    for index in (2, 0, 1):
        as_host(monkeypatch, index, 3)
        assert write_records(tmp_path / "all.jsonl", iter(records(7))) == 7
    names = [f"all-0000{i}-of-00003.jsonl" for i in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "one.jsonl"]
    assert [len((tmp_path / name).read_text().splitlines()) for name in names] == [2, 2, 3]
    together = b"".join((tmp_path / name).read_bytes() for name in names)
    assert together == (tmp_path / "one.jsonl").read_bytes()
    assert read_records(tmp_path / "all.jsonl", Prompt) == records(7)
    # A line of the whole is named, wherever it lies.
    assert [where for where, _ in json_lines(tmp_path / "all.jsonl")][
        5
    ] == f"{tmp_path}/all.jsonl:6"


def test_a_missing_shard_is_refused_and_no_shard_is_no_file(tmp_path, monkeypatch):
    assert not rows.exists(tmp_path / "all.jsonl")
    as_host(monkeypatch, 1, 2)
    write_records(tmp_path / "all.jsonl", records(4))
    with pytest.raises(InputError, match="all shards of one writing, found all-00001-of-00002"):
        read_records(tmp_path / "all.jsonl", Prompt)


def test_only_the_first_host_writes_metrics(monkeypatch, tmp_path):
    for index in (0, 1):
        as_host(monkeypatch, index, 2)
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, host=index)
    assert read_metrics(tmp_path) == [{"step": 1, "host": 0}]


def test_a_mesh_that_leaves_a_host_without_work_is_refused(monkeypatch):
    as_host(monkeypatch, 0, 2)
    with pytest.raises(InputError, match=r"expected all 8 devices of the 2 hosts, found 2"):
        make_mesh(ConfigDict({"data": 2, "fsdp": 1, "tensor": 1}))


def test_what_is_placed_is_fetched():
    mesh = make_mesh(ConfigDict({"data": 4, "fsdp": 1, "tensor": 1}))
    tree = {"a": np.arange(8.0), "b": np.arange(24).reshape(8, 3)}
    placed = placing.place(tree, batch_sharding(mesh))
    assert [shard.data.shape for shard in placed["b"].addressable_shards] == [(2, 3)] * 4
    fetched = placing.fetch(placed | {"number": 3})
    assert fetched["number"] == 3
    np.testing.assert_array_equal(fetched["a"], tree["a"])
    np.testing.assert_array_equal(fetched["b"], tree["b"])
    assert placing.place(tree, None)["a"].devices() == {jax.devices()[0]}


class Part:
    """A sharding of which a host has some devices."""

    is_fully_addressable = False

    def __init__(self, whole, devices):
        self.whole, self.devices = whole, devices

    def addressable_devices_indices_map(self, shape):
        found = self.whole.addressable_devices_indices_map(shape)
        return {device: found[device] for device in self.devices}


@pytest.mark.parametrize("axes", [(4, 1, 2), (2, 4, 1), (1, 2, 4)], ids=str)
def test_hosts_together_give_the_rows_of_one_and_each_its_own(axes, monkeypatch):
    devices = make_mesh(ConfigDict(dict(zip(("data", "fsdp", "tensor"), axes))))
    whole, rows = batch_sharding(devices), 16
    given, together = np.arange(rows * 3).reshape(rows, 3), np.full((rows, 3), -1)
    # Two hosts, whose devices need not lie side by side.
    for numbers in ([0, 1, 6, 7], [2, 3, 4, 5]):
        part = Part(whole, [jax.devices()[number] for number in numbers])
        parts = part.addressable_devices_indices_map((rows,)).values()
        held = placing.held_rows(part, rows)
        assert held == sorted({row for (of,) in parts for row in range(rows)[of]})
        assert len(held) * devices.shape["tensor"] >= rows // 2

        def make(shape, sharding, read, parts=parts):
            assert shape == (rows, 3)
            for (of,) in parts:
                together[of] = read((of, slice(None)))

        with monkeypatch.context() as patch:
            patch.setattr(jax, "make_array_from_callback", make)
            placing.place_rows([given[held]], part, held, rows)
    np.testing.assert_array_equal(together, given)


def test_arrays_go_to_devices_where_several_hosts_can_follow():
    allowed = {"models/placing.py", "core/training.py"}
    found = {
        path.relative_to(ROOT / "cai_jax").as_posix()
        for path in (ROOT / "cai_jax").rglob("*.py")
        if "jax.device_put" in path.read_text()
    }
    assert found == allowed
