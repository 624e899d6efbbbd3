"""Runs of the pipeline as processes of their own that begin at once.

This process imports what a run imports, and forks for each run: to start Python and import JAX
takes longer than the whole tiny pipeline. It reads a line of JSON for each run, {"arguments",
"log"}, and writes the id of its process, then how it ended as `os.waitpid` has it.
"""

import importlib
import json
import os
import sys

from cai_jax import run as runner

NEEDED = (
    *(f"cai_jax.stages.{kind}" for kind in ("critique_revise", "finetune", "compare")),
    *(f"cai_jax.stages.{kind}" for kind in ("feedback", "preference", "ppo")),
    *("jax", "optax", "grain", "transformers", "tokenizers", "orbax.checkpoint"),
    *("cai_jax.core.training", "cai_jax.algorithms.ppo", "cai_jax.models.weights"),
    *("cai_jax.generation.generate", "cai_jax.generation.score", "cai_jax.generation.rollout"),
)


def run(arguments: list[str], log: str) -> None:
    """What the child does; it does not return."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    status = 0
    try:
        runner.main(arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serves until its input ends."""
    for name in NEEDED:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if not child:
            run(wanted["arguments"], wanted["log"])
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
