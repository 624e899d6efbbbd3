"""One job for each cell of an ablation, by any script here; {} in an argument stands for its name:

    python launch/cells.py [--dry-run] PART COMMAND ... --config=FILE --workdir=DIR [--config.K=V]
    python launch/cells.py shared launch/xpk.sh CLUSTER {} v6e-8 IMAGE \\
        --config=configs/ablations/clamp.py --workdir=/runs/clamp

PART, each when the one before has ended:
    shared  one job: the steps that several cells need
    cells   one job a cell, at once: the rest of what it needs
    table   one job: the evaluation of all cells, and their table

Each works in a folder of its own in DIR, which all jobs see, and takes what the parts before it
have finished (--reuse); DIR/table has the table of the whole config run at once. Under Slurm
COMMAND is `sbatch --job-name={} launch/slurm.sbatch`; `bash launch/start.sh cpu` runs them here.
"""

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cai_jax.core import configuration
from cai_jax.errors import InputError, exits_on_input_error
from cai_jax.pipeline import Step, read_steps
from cai_jax.stages import load_stage

PARTS = ("shared", "cells", "table")


def needed(steps: Sequence[Step], name: str) -> set[str]:
    """A step and all that it needs."""
    sources = {step.name: step.sources for step in steps}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += sources[name]
    return found


def jobs(steps: Sequence[Step], part: str) -> dict[str, tuple[list[str], list[str]]]:
    """Folder -> (the steps to run there, the folders to take others from) of the jobs of a part.

    Raises:
        InputError: the config has no cells.
    """
    names = [step.name for step in steps]
    models = next((s.inputs["models"] for s in steps if s.kind == "evaluate"), None)
    if not isinstance(models, dict) or len(models) < 2 or set(models.values()) - set(names):
        raise InputError("--config: expected a step of kind evaluate, of two models or more")
    of_cells = {cell: needed(steps, model) for cell, model in models.items()}
    often = Counter(name for of_cell in of_cells.values() for name in of_cell)
    shared = [name for name in names if often[name] > 1]
    first = ["shared"] if shared else []
    if part == "shared":
        return {"shared": (shared, [])} if shared else {}
    if part == "cells":
        return {
            cell: ([name for name in names if name in of_cell], first)
            for cell, of_cell in of_cells.items()
        }
    return {"table": (names, [*first, *of_cells])}


def commands(arguments: Sequence[str]) -> list[list[str]]:
    """The command of each job.

    Raises:
        InputError: bad usage, or a config that is none.
    """
    if not arguments or arguments[0] not in PARTS:
        raise InputError(f"expected one of {', '.join(PARTS)} and a command; see {__file__}")
    given = {"config": "", "workdir": ""}
    words, changes = [], []
    for word in arguments[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--config."):
            changes.append(word)
        elif word.startswith("--") and name in given:
            given[name] = value
        else:
            words.append(word)
    if not words or not all(given.values()):
        raise InputError("expected a command, --config=FILE and --workdir=DIR")
    config = configuration.load_config(given["config"])
    configuration.override(config, [word.removeprefix("--config.") for word in changes])
    found = []
    for folder, (steps, others) in jobs(read_steps(config, load_stage), arguments[0]).items():
        command = [word.replace("{}", folder.replace("_", "-").lower()) for word in words]
        command += [f"--config={given['config']}", f"--workdir={given['workdir']}/{folder}"]
        command += [f"--steps={','.join(steps)}"]
        if others:
            command += ["--reuse=" + ",".join(f"{given['workdir']}/{other}" for other in others)]
        found.append([*command, *changes])
    return found


@exits_on_input_error
def main() -> None:
    """Gives the commands, or prints them; it stops at the first that fails."""
    arguments = sys.argv[1:]
    dry_run = arguments[:1] == ["--dry-run"]
    for command in commands(arguments[dry_run:]):
        if not dry_run:
            subprocess.run(command, check=True)
        elif Path(command[0]).parent == Path("launch"):  # a script here says what it would do
            subprocess.run([command[0], "--dry-run", *command[1:]], check=True)
        else:
            print(shlex.join(command))


if __name__ == "__main__":
    main()
