import errno
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cai_jax.core import artifact, checkpoint
from cai_jax.core.termination import deferred, raising
from cai_jax.core.training_checkpoints import (
    Best,
    TrainingCheckpoints,
    any_good,
    check,
    default_config,
    rewind,
)
from cai_jax.errors import InputError, Terminated

START = {"number": 0, "total": 0.0, "absent": float("nan")}


@jax.jit
def first_state():
    return {"params": jnp.arange(5.0), "key": jax.random.key(0)}


@jax.jit
def update(state, number):
    noise = jax.random.normal(jax.random.fold_in(state["key"], number), (5,))
    return state | {"params": state["params"] * 1.1 + noise}


donated = jax.jit(update, donate_argnums=0)


def train(folder, num_steps=6, every=2, stop=None, **changes):
    """A training that writes a line an update; it breaks off before it saves after `stop`."""
    folder.mkdir(exist_ok=True)
    config = ConfigDict({**default_config(every), **changes})
    with TrainingCheckpoints(folder, config, "base") as saves:
        state, at = saves.restored(first_state(), START)
        total = at["total"]
        for number in range(at["number"] + 1, num_steps + 1):
            state = donated(state, number)
            total += number / 3
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(f"{number} {float(state['params'][0])!r}\n")
            if number == 3:
                (folder / "snapshots" / "step-3").mkdir(parents=True)
                (folder / "snapshots" / "step-3" / "model").write_text("model")
            if number == stop:
                raise KeyError(saves.last_good)
            if saves.due(number):
                saves.save(number, state, at | {"number": number, "total": total})
    return np.asarray(state["params"]), total


def contents(folder):
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {str(name): data for name, data in found.items() if name.parts[0] != "unfinished"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "rl"
    return train(folder, every=0), contents(folder)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """Broken off after update 5, with checkpoints after 2 and 4."""
    folder = tmp_path_factory.mktemp("broken") / "rl"
    with pytest.raises(KeyError, match="unfinished/00000004"):
        train(folder, stop=5)
    return folder


def test_it_goes_on_to_the_same_bits(undisturbed, broken_off, tmp_path, capsys):
    folder = shutil.copytree(broken_off, tmp_path / "rl")
    assert any_good(folder)
    assert rewind(folder) == 4
    assert capsys.readouterr().err == "rl: goes on from checkpoint 4\n"
    assert contents(folder)["metrics.jsonl"].count(b"\n") == 4
    (params, total), files = undisturbed
    found, found_total = train(folder)
    assert found.tobytes() == params.tobytes() and found_total == total
    assert contents(folder) == files
    saved = sorted(path.name for path in (folder / "unfinished").iterdir())
    assert saved == ["00000004", "00000006"]  # the last two are kept
    # What Orbax wrote while the updates went on in the same memory is the state of then.
    params = first_state()
    for number in range(1, 5):
        params = update(params, number)
    kept = checkpoint.restore(folder / "unfinished/00000004/state", params)
    assert np.asarray(kept["params"]).tobytes() == np.asarray(params["params"]).tobytes()


def test_without_a_checkpoint_it_begins_anew(undisturbed, tmp_path, capsys):
    folder = tmp_path / "rl"
    with pytest.raises(KeyError, match="base"):
        train(folder, every=0, stop=5)
    assert not any_good(folder)
    assert rewind(folder) is None
    assert contents(folder) == {} and capsys.readouterr().err == ""
    assert train(folder, every=0)[0].tobytes() == undisturbed[0][0].tobytes()


def state_files(folder):
    return sorted((folder / "unfinished/00000004/state").rglob("*"))


def flip(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def damage_an_array(folder):
    flip(max((p for p in state_files(folder) if p.is_file()), key=lambda p: p.stat().st_size))


def truncate_an_array(folder):
    path = max((p for p in state_files(folder) if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def damage_a_number(folder):
    path = folder / "unfinished/00000004/position.json"
    path.write_text(path.read_text().replace('"number": 4', '"number": 3'))


def remove_the_position(folder):
    (folder / "unfinished/00000004/position.json").unlink()


def lose_a_line(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage_an_array, r"is damaged \(state/.*\)"),
        (truncate_an_array, r"is damaged \(state/.*\)"),
        (damage_a_number, r"is damaged \(position.json\)"),
        (remove_the_position, "is incomplete"),
        (lose_a_line, "has lost a part of metrics.jsonl"),
    ],
)
def test_what_is_not_good_is_named_and_the_one_before_it_is_taken(
    harm, said, undisturbed, broken_off, tmp_path, capsys
):
    folder = shutil.copytree(broken_off, tmp_path / "rl")
    harm(folder)
    assert rewind(folder) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(f"rl: checkpoint 4 {said}; goes on from checkpoint 2\n", message), message
    assert train(folder)[0].tobytes() == undisturbed[0][0].tobytes()
    assert contents(folder) == undisturbed[1]


def test_where_none_is_good_it_begins_anew(undisturbed, broken_off, tmp_path, capsys):
    folder = shutil.copytree(broken_off, tmp_path / "rl")
    for number in (2, 4):
        flip(folder / f"unfinished/{number:08d}/position.json")
    assert rewind(folder) is None
    assert capsys.readouterr().err == (
        "rl: checkpoint 4 is damaged (position.json); checkpoint 2 is damaged (position.json); "
        "begins anew\n"
    )
    assert contents(folder) == {}
    assert train(folder)[0].tobytes() == undisturbed[0][0].tobytes()


def test_a_checkpoint_of_another_training_is_refused(broken_off, tmp_path):
    folder = shutil.copytree(broken_off, tmp_path / "rl")
    with (
        TrainingCheckpoints(folder, default_config(0), "base") as saves,
        pytest.raises(InputError, match="not a checkpoint of this training .*--overwrite=rl"),
    ):
        saves.restored({"other": jnp.zeros(3)}, START)


def test_sigterm_waits_for_the_update_and_saves(undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "rl"
    due = TrainingCheckpoints.due

    def asked(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return due(self, number)

    monkeypatch.setattr(TrainingCheckpoints, "due", asked)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        train(folder, every=0)
    assert signal.getsignal(signal.SIGTERM) is before
    assert rewind(folder) == 3
    monkeypatch.undo()
    assert train(folder, every=0)[0].tobytes() == undisturbed[0][0].tobytes()
    assert contents(folder) == undisturbed[1]


def test_sigterm_elsewhere_ends_at_once_or_at_the_end_of_what_must_not_be_broken_off():
    done = []
    with pytest.raises(Terminated), raising():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    with pytest.raises(Terminated), raising(), deferred() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(asked())
    assert done == [True]


def test_a_write_that_the_system_refuses_is_an_oserror_of_the_run(tmp_path, monkeypatch):
    real = checkpoint.save_async

    def full(path, state):
        def wait():
            with checkpoint._os_errors(path):
                raise ValueError("Error writing [OS error 28: ENOSPC No space left on device]")

        return wait if Path(path).parent.name == "00000004" else real(path, state)

    monkeypatch.setattr(checkpoint, "save_async", full)
    folder = tmp_path / "rl"
    with pytest.raises(OSError, match="No space left on device: .*00000004/state") as error:
        train(folder)
    assert error.value.errno == 28
    assert rewind(folder) == 2


def test_a_full_disk_under_orbax_is_an_oserror_and_nothing_else(tmp_path, caplog):
    """The limit on the size of files is the kernel's, and so is the error."""
    state = {"params": jax.random.normal(jax.random.key(0), (40_000,))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    saves = TrainingCheckpoints(tmp_path, default_config(0), "base")
    with pytest.raises(OSError, match="File too large") as error, saves:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            saves.save(1, state, {"number": 1})
            saves.last_good  # noqa: B018 it waits
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert [record.getMessage() for record in caplog.records] == []
    assert not any_good(tmp_path) and rewind(tmp_path) is None


def test_the_unfinished_is_no_part_of_an_artifact(broken_off):
    assert sorted(artifact.file_hashes(broken_off)) == ["metrics.jsonl", "snapshots/step-3/model"]


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match=r"checkpoints.every: expected at least 0, found -1"):
        check(default_config(-1))
    with pytest.raises(InputError, match=r"checkpoints.keep: expected at least 1, found 0"):
        check(ConfigDict({**default_config(0), "keep": 0}))


def test_the_lowest_loss_is_kept_and_written_again_by_what_goes_on(tmp_path):
    best = Best(tmp_path)
    given = {"w": jnp.zeros(3)}
    assert best.restored(given) is given
    for number, loss in ((2, 0.5), (4, 0.4), (6, 0.4), (8, float("nan"))):
        best.offer(number, loss, {"w": jnp.full(3, float(number))})
    assert best.position == [4, 0.4]
    again = Best(tmp_path, [2, 0.5])  # its last checkpoint was before update 4
    assert again.restored(given)["w"].tolist() == [2.0] * 3
    again.offer(4, 0.3, {"w": jnp.full(3, 40.0)})
    assert again.restored(given)["w"].tolist() == [40.0] * 3
    assert rewind(tmp_path) is None
    assert again.restored(given)["w"].tolist() == [40.0] * 3
