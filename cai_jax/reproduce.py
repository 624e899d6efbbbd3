"""The paper's figures and claims in the desk-scale world: `python -m cai_jax.reproduce`.

Runs the steps that the asked figures need, for each seed in a workdir of its own below --workdir,
and writes claims.json, figures/*.svg and index.html. What is finished is not run again: a figure
asked for later, or one seed more, reuses it. docs/claims.md says what is tested, and how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import typing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cai_jax.command_line import Parser
from cai_jax.core import artifact
from cai_jax.core.progress import Progress
from cai_jax.errors import InputError, exits_on_input_error

if typing.TYPE_CHECKING:
    from cai_jax.laboratory.measured import Run
    from cai_jax.pipeline import Step

CONFIG = '''"""Written by cai_jax.reproduce: the steps of cai_jax/laboratory/steps.py."""

from cai_jax.laboratory import steps


def get_config():
    """At the scale of this workdir."""
    return steps.get_config("{scale}")
'''


def parser() -> Parser:
    """The flags."""
    flags = Parser(prog="python -m cai_jax.reproduce", description=__doc__)
    flags.add_argument("--workdir", type=Path, required=True, help="made if needed")
    flags.add_argument("--figures", default="all", help='"2,5,variants", say; or "all"')
    flags.add_argument("--seeds", type=int, default=3, help="runs, of the seeds 0, 1, ...")
    flags.add_argument("--jobs", type=int, default=3, help="seeds at once; 1.3 GB of memory each")
    flags.add_argument("--scale", choices=("quick", "full"), default="quick", help="of everything")
    flags.add_argument(
        "--read_only", action="store_true", help="run nothing, and read what is finished"
    )
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, and writes claims, figures and page.

    Args:
        arguments: the command line; None takes the process's own.
    """
    options = parser().parse_args(arguments)
    from cai_jax.laboratory import steps
    from cai_jax.laboratory.figures import FIGURES
    from cai_jax.pipeline import read_steps
    from cai_jax.stages import load_stage

    figures = list(FIGURES) if options.figures == "all" else options.figures.split(",")
    for name in figures:
        if name not in FIGURES:
            raise InputError(f"--figures: expected some of {', '.join(FIGURES)}, found {name!r}")
    if options.seeds < 1:
        raise InputError(f"--seeds: expected at least 1, found {options.seeds}")
    if options.jobs < 1:
        raise InputError(f"--jobs: expected at least 1, found {options.jobs}")
    config = write_config(options.workdir, options.scale)
    wanted = needed(read_steps(steps.get_config(options.scale), load_stage), figures)
    folders = [options.workdir / f"seed-{seed}" for seed in range(options.seeds)]
    if not options.read_only:
        try:
            run_seeds(config, folders, wanted, options.jobs)
        except KeyboardInterrupt:  # the run itself has said where it stopped
            raise SystemExit(130) from None
    runs = [read(folder) for folder in folders if folder.is_dir()]
    runs = [run for run in runs if run]
    about = f"Scale: {options.scale}. Seeds: {len(runs)}."
    for line in write(options.workdir, runs, figures, about):
        print(line)


def write_config(workdir: Path, scale: str) -> Path:
    """The config file of a workdir; refused if the workdir has another scale."""
    path, text = workdir / "config.py", CONFIG.format(scale=scale)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path}: is of another scale; name another --workdir, or that --scale")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def needed(steps: Sequence[Step], figures: Sequence[str]) -> list[str]:
    """The steps that figures read, and all that these need, in the order of `steps`."""
    from cai_jax.laboratory.figures import FIGURES

    sources = {step.name: step.sources for step in steps}
    waiting = [name for figure in figures for name in FIGURES[figure].steps]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += sources[name]
    return [step.name for step in steps if step.name in found]


def run_seeds(config: Path, folders: Sequence[Path], wanted: Sequence[str], jobs: int) -> None:
    """Runs the wanted steps of each seed; a line on stdout for each that was not finished.

    Each seed is a process of `cai_jax.run`, `jobs` of them at once: models of this size leave a
    core idle. They share what was compiled, on disk: most steps compile the same programs.

    Raises:
        SystemExit: a run failed, with its status; its message is on stderr. The others go on to
            their end before.
    """
    compiled = config.parent / "compiled"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    total = len(folders) * len(wanted)
    with (
        Progress("reproduce", total, "steps") as progress,
        ThreadPoolExecutor(max_workers=jobs) as pool,
    ):
        turn = threading.Lock()

        def run(seed: int) -> None:
            folder = folders[seed]
            missing = [name for name in wanted if not artifact.is_finished(folder / name)]
            with turn:
                progress.advance(len(wanted) - len(missing), f"seed {seed}")
            # Where nothing is missing, it still refuses what other settings have made.
            command = [sys.executable, "-m", "cai_jax.run", f"--config={config}"]
            command += [f"--workdir={folder}", f"--config.seed={seed}"]
            command += [f"--steps={','.join(wanted)}"]
            with (
                tempfile.TemporaryFile("w+") as errors,  # a terminal has room for one progress line
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
                ) as process,
            ):
                for line in process.stdout or ():
                    name = line.split(" ")[0].strip()
                    if name in missing and "records" in line:
                        missing.remove(name)
                        with turn:
                            progress.advance(1, f"seed {seed}: {name}")
                            print(f"seed {seed}  {line.rstrip()}", flush=True)
                status = process.wait()
                errors.seek(0)
                for line in errors:
                    print(f"seed {seed}  {line.rstrip()}", file=sys.stderr, flush=True)
            if status:
                raise SystemExit(status)

        list(pool.map(run, range(len(folders))))


def read(workdir: Path) -> Run:
    """Step -> evaluation of the finished steps of a seed."""
    return {
        folder.name: json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        for folder in sorted(workdir.iterdir())
        if artifact.is_finished(folder) and (folder / "evaluation.json").is_file()
    }


def write(workdir: Path, runs: Sequence[Run], figures: Sequence[str], about: str) -> list[str]:
    """Computes and writes everything from the artifacts alone; returns lines that sum it up."""
    from cai_jax.laboratory.results import results
    from cai_jax.page.figures import anchor, file
    from cai_jax.stages import report

    found = results(runs, figures, about)
    artifact.write_json(workdir / "claims.json", found)
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in found["figures"].items():
        if figure["ours"]:
            path = folder / f"{anchor(name)}.svg"
            path.write_text(file(name, figure), encoding="utf-8")
    html = report.page(report.default_config(), *report.discover(workdir))
    (workdir / report.PAGE).write_text(html, encoding="utf-8", errors="backslashreplace")
    lines = [
        f"{claim['number'] or '-':>2}  {claim['verdict']:<12}  {claim['claim']}"
        for claim in (*found["claims"], found["required"])
    ]
    return [*lines, found["statement"], str(workdir / report.PAGE)]


if __name__ == "__main__":
    main()
