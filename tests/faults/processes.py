"""Runs of the pipeline as processes that are sent signals."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 600  # seconds until what must come has come, on a busy machine
# What is compiled is not compiled again after a kill, however quick it was.
KEEP_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Runs:
    """Starts runs of a config that serves them, one at a time, in a folder."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config
        paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
        self._server = subprocess.Popen(
            [sys.executable, str(config)],
            env=os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": "", **KEEP_ALL},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout.readline() == "ready\n"

    def start(self, workdir, *flags):
        """The id of the process of a new run."""
        self.log = self.folder / f"{workdir}.log"
        arguments = [f"--config={self.config}", f"--workdir={workdir}", *flags]
        self._say(json.dumps({"arguments": arguments, "log": str(self.log)}))
        return int(self._server.stdout.readline())

    def _say(self, line):
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()

    def end(self):
        """How the run ended: its exit status, or minus the signal that ended it."""
        self._say("wait")
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))

    def stopped(self, workdir, number, ready, *flags):
        """How a run ends that gets a signal as soon as `ready`()."""
        process, deadline = self.start(workdir, *flags), time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)
        os.kill(process, number)
        return self.end()

    def finish(self, workdir, *flags):
        self.start(workdir, *flags)
        assert self.end() == 0, self.log.read_text()

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)
