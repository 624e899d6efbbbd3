import json
import os
import time

import pytest

from cai_jax.core import goodput


def test_time_of_all_runs_counts_and_that_of_finished_steps_is_productive(tmp_path):
    (tmp_path / "_logs").mkdir()
    (tmp_path / "_logs" / "runs.json").write_text("[30.0, 50.0]")
    assert goodput.measure(tmp_path, [{"seconds": 12.5}, {"seconds": 47.5}]) == {
        "runs": 2,
        "wall_seconds": 80.0,
        "productive_seconds": 60.0,
        "goodput": 0.75,
    }


def test_a_run_adds_its_time_to_that_of_the_runs_before(tmp_path):
    with goodput.clocked(tmp_path, time.monotonic() - 100):
        pass
    with goodput.clocked(tmp_path, time.monotonic() - 10):
        pass
    first, second = goodput.seconds(tmp_path)
    assert 100 <= first < 105 and 10 <= second < 15


def test_a_run_that_is_killed_has_left_its_time_behind(tmp_path):
    with goodput.clocked(tmp_path, time.monotonic(), every=0.01):
        time.sleep(0.2)
        (before,) = goodput.seconds(tmp_path)  # as far as the file had it at that moment
    assert before >= 0.05


def test_steps_of_unrecorded_runs_are_one_run_without_loss(tmp_path):
    with goodput.clocked(tmp_path, time.monotonic() - 10, productive=30.0):
        pass
    assert goodput.seconds(tmp_path)[0] == 30.0 and len(goodput.seconds(tmp_path)) == 2


@pytest.mark.parametrize("text", ["", "{", "3", '["a"]'], ids=["empty", "cut", "number", "text"])
def test_a_broken_record_is_no_record(tmp_path, text):
    (tmp_path / "_logs").mkdir()
    (tmp_path / "_logs" / "runs.json").write_text(text)
    assert goodput.seconds(tmp_path) == [] and goodput.measure(tmp_path, [{"seconds": 1}]) == {}


def test_the_record_is_json_that_is_there_as_a_whole(tmp_path):
    with goodput.clocked(tmp_path, time.monotonic()) as update:
        update()
        assert len(json.loads((tmp_path / "_logs" / "runs.json").read_text())) == 1


def test_of_a_killed_run_what_it_saved_counts(tmp_path):
    assert goodput.saved_seconds(tmp_path / "none", 1000.0, 7.0) == 0
    for name, at in (("00000010/position.json", 1030.0), ("blocks/00000001.json", 1020.0)):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
        os.utime(path, (at, at))
    (tmp_path / "step.json").touch()  # written when a run begins, not when something is saved
    assert goodput.saved_seconds(tmp_path, 1000.0, 7.0) == 37
    # A run that saved nothing more.
    assert goodput.saved_seconds(tmp_path, 2000.0, 37.0) == 37
