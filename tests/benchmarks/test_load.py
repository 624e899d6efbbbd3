"""The host's memory while a model is loaded: the bound that the benchmark states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc"
)
def test_the_host_holds_at_most_one_tensor_besides_the_params():
    command = [sys.executable, ROOT / "benchmarks" / "load.py", "--devices=4"]
    # A cache of programs would be filled by this process, and read by it the next time.
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["files"] == 4
    assert found["params_bytes"] == 4 * (
        32_000 * 512 + 512 + 12 * (4 * 512**2 + 3 * 512 * 2048 + 1024)
    )
    assert found["largest_tensor_bytes"] == 4 * 32_000 * 512
    assert found["baseline_bytes"] + found["params_bytes"] < found["peak_bytes"]
    assert found["holds"]
