import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cai_jax.core.lock import LOCK, locked
from cai_jax.errors import InputError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, pathlib
from cai_jax.core.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path` until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_one_process_at_a_time_and_the_other_is_named(tmp_path, holder):
    message = rf"another run holds it \(process {holder.pid} on "
    with pytest.raises(InputError, match=message), locked(tmp_path):
        pass
    holder.stdin.close()
    holder.wait(timeout=20)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / LOCK).read_text() == ""


def test_a_killed_process_locks_nothing_and_the_next_one_says_so(tmp_path, holder, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=20)
    assert f"process {holder.pid}" in (tmp_path / LOCK).read_text()
    with locked(tmp_path):
        pass
    assert f"taking over from process {holder.pid} on" in capsys.readouterr().err


def test_an_error_inside_lets_go_of_the_lock(tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
    assert capsys.readouterr().err == ""
