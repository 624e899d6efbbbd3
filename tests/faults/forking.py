"""Runs of the pipeline as processes of their own that begin at once.

This process imports what a run imports, and forks for each run: to start Python and import JAX
takes longer than the runs of `small_steps.py`. It reads a line of JSON for each run, {"arguments",
"log"}, and writes the id of its process; after another line, how it ended, as `os.waitpid` has it.
"""

import importlib
import json
import os
import sys
import traceback

from cai_jax import run as runner
from cai_jax.stages import load_stage

MODULES = ("jax.numpy", "numpy", "orbax.checkpoint", "cai_jax.core.training_checkpoints")


def run(arguments: list[str], log: str, load) -> None:
    """What the child does; it does not return."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    status = 1
    try:
        runner.main(arguments, load_stage=load)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(load=load_stage, modules=MODULES) -> None:
    """Serves until its input ends."""
    for name in modules:
        importlib.import_module(name)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        wanted = json.loads(line)
        child = os.fork()
        if not child:
            run(wanted["arguments"], wanted["log"], load)
        print(child, flush=True)
        sys.stdin.readline()  # until then its id is its own, and may be sent a signal
        print(os.waitpid(child, 0)[1], flush=True)
