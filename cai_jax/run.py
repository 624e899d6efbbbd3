"""Runs the pipeline of a config: `python -m cai_jax.run --config=configs/X.py --workdir=DIR`.

Finished steps whose config and inputs are unchanged are skipped; unfinished ones go on from their
last good checkpoint, or run from their start. --config.KEY=VALUE changes a key of the config, as
often as wanted. Exit status: 0 done; 2 bad usage or input, or a workdir that cannot be written;
1 a training whose numbers are none, or another host gone; 130 Ctrl-C; 143 SIGTERM, after saving.
After each the same command goes on. On several hosts, run the same command on each.
"""

import argparse
import contextlib
import errno
import functools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from cai_jax import __version__, checkpoints, command_line, hosts, inputs, planner, shapes, summary
from cai_jax.core import artifact, configuration, goodput, monitoring, termination
from cai_jax.core.lock import locked
from cai_jax.core.progress import duration
from cai_jax.data.readers import default_data
from cai_jax.errors import InputError, Terminated, exits_on_input_error
from cai_jax.pipeline import Step, read_steps, select, source_of
from cai_jax.resume import Outside, begin, decide, input_hashes, take, vanished, verify
from cai_jax.stages import LoadStage, load_stage

RECORD = "run.json"  # what was run last in a workdir; marks the folder as one
# What the system says of a disk that is full, over its quota, read-only, or not the user's.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage is one line, as every other error."""
        raise InputError(f"{message}; see --help")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the `KEY=VALUE` overrides of the config among them."""
    parser = _Parser(
        prog="python -m cai_jax.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="made if needed")
    parser.add_argument("--steps", type=_names, metavar="A,B", help="run these alone")
    parser.add_argument(
        "--overwrite", type=_names, default=[], metavar="A,B", help="run these again, if finished"
    )
    parser.add_argument(
        "--reuse",
        type=lambda text: [Path(name) for name in _names(text)],
        default=[],
        metavar="DIR,DIR",
        help="workdirs whose finished steps are taken where they would become the same here",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what each step takes, and run nothing"
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of the first of several hosts, the same on all; 'auto' asks the cluster (TPU VMs); "
        "Slurm, GKE and JAX_COORDINATOR_ADDRESS need no flag",
    )
    parser.add_argument("--num_hosts", type=int, metavar="N", help="how many there are")
    parser.add_argument("--host", type=int, metavar="I", help="which this is, from 0")
    parser.add_argument(
        "--heartbeat_timeout",
        type=int,
        default=hosts.HEARTBEAT_SECONDS,
        metavar="SECONDS",
        help="a host that is silent so long is gone, and the others stop",
    )
    options, rest = parser.parse_known_args(arguments)
    for flag in rest:
        if not re.match(r"--config\.", flag):
            known = ["--config", "--workdir", "--steps", "--overwrite", "--reuse", "--dry_run"]
            known += ["--coordinator", "--num_hosts", "--host", "--heartbeat_timeout"]
            name = flag.split("=")[0]
            raise InputError(f"unknown flag {name}; {configuration.nearest(name, known)}")
    return options, [flag.removeprefix("--config.") for flag in rest]


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


@exits_on_input_error
def main(arguments: Sequence[str] | None = None, load_stage: LoadStage = load_stage) -> None:
    """Checks everything, then runs what is not finished.

    Args:
        arguments: the command line; None takes the process's own.
        load_stage: finds the module of a kind of step.
    """
    started = time.monotonic()
    options, overrides = parse(arguments)
    command_line.keep_compiled()
    others = hosts.asked(options.coordinator, options.num_hosts, options.host, os.environ)
    # A plan needs no other hosts, and no devices.
    with hosts.together(None if options.dry_run else others, options.heartbeat_timeout):
        run_config(options, overrides, load_stage, started)


def run_config(
    options: argparse.Namespace, overrides: list[str], load_stage: LoadStage, started: float
) -> None:
    """What `main` does, once this host is one of how many there are.

    Args:
        options, overrides: as `parse` gives them.
        load_stage: finds the module of a kind of step.
        started: when the process was, by `time.monotonic`.
    """
    workdir: Path = options.workdir
    config = configuration.load_config(options.config)
    with config.unlocked():
        for name, group in (("data", default_data()), ("monitoring", monitoring.default_config())):
            if name not in config:
                config[name] = group
    configuration.override(config, overrides)
    steps = read_steps(config, load_stage)
    selected = select(steps, options.steps or [step.name for step in steps], "--steps")
    overwritten = select(steps, options.overwrite, "--overwrite")
    given = Outside([step.name for step in steps])
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir}: expected a folder, found a file")

    for other in options.reuse:
        if not (other / RECORD).is_file():
            raise InputError(f"--reuse={other}: expected the workdir of a run, found no {RECORD}")
    to_run = decide(steps, workdir, selected, overwritten, given)
    check(to_run, steps, given, planning=options.dry_run)
    if options.dry_run:
        hardware = config.hardware if "hardware" in config else ""
        print(planner.table(steps, planner.plan(steps, given, hardware), selected))
        return
    refuse_foreign_folders(workdir, to_run)
    if to_run or overwritten or not (workdir / summary.SUMMARY).is_file():
        record = {"config": options.config, "overrides": overrides, "package_version": __version__}
        try:
            hosts.wait("every host has looked at the workdir")
            wanted = [name for name in selected if name not in overwritten]
            take_them = functools.partial(take, steps, wanted, workdir, options.reuse, given)
            with held(workdir, record, steps, started, take_them) as update_clock:
                # Once more: steps were taken, and another run may have ended since.
                to_run = decide(steps, workdir, selected, overwritten, given)
                hosts.wait("every host has decided")
                run(steps, workdir, selected, overwritten, to_run, given)
                update_clock()
                summary.write_summary(workdir, steps, config.seed)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise InputError(
                f"--workdir={workdir}: cannot be written: {error}; mend it, and the same command "
                "goes on"
            ) from None
    else:
        for step in steps:
            if step.name in selected:
                say(finished_line(steps, step, workdir))
    for text in summary.closing(workdir, steps):
        say(f"\n{text}")
    hosts.wait("the run is done")


def say(text: str) -> None:
    """Prints, on the first host alone."""
    if hosts.is_first():
        print(text, flush=True)


@contextlib.contextmanager
def held(
    workdir: Path,
    record: dict[str, Any],
    steps: Sequence[Step],
    started: float,
    take_them: Callable[[], list[str]],
) -> Iterator[Callable[[], None]]:
    """The workdir, held for this run alone, and its time counted: by the first host, for all.

    Args:
        workdir: made if needed.
        record: of the run, for RECORD.
        steps: of the config.
        started: when the process was, by `time.monotonic`.
        take_them: takes what other workdirs have, as soon as this one is held.

    Yields:
        A function that brings the record of the time up to date.

    Raises:
        InputError: another run holds it; or the hosts do not see the same one.
    """
    if not hosts.is_first():
        hosts.wait("the workdir is held")
        if artifact.read_json(workdir / RECORD) != record:
            raise InputError(
                f"--workdir={workdir}: this host does not see what the first one wrote there; "
                "choose a folder that all hosts share"
            )
        yield lambda: None
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        artifact.write_json(workdir / RECORD, record)
        for name in take_them():
            print(f"{name}: taken from another workdir", file=sys.stderr)
        manifests = [artifact.read_manifest(workdir / step.name) for step in steps]
        productive = goodput.productive_seconds([m for m in manifests if m])
        with goodput.clocked(workdir, started, productive) as update_clock:
            hosts.wait("the workdir is held")
            yield update_clock


def check(
    to_run: Sequence[Step], steps: Sequence[Step], given: Outside, planning: bool = False
) -> None:
    """Refuses what any step to run would refuse; before the first of them runs.

    For a plan alone, models of the hub and devices need not be here.

    Raises:
        InputError: an input that is missing, malformed or of the wrong sort; too few devices.
    """
    kinds = {step.name: step.kind for step in steps}
    configs = {step.name: step.config for step in steps}
    checked: set[tuple[Any, ...]] = set()
    for step in to_run:
        where = f"step {step.name!r}"
        if hasattr(step.stage, "check"):
            with_prefix(where, step.stage.check, ConfigDict(step.config), step.inputs)
        for label, role, reference in step.references():
            source = source_of(reference, step.sources)
            if source is not None:
                label = f"{where}: inputs.{label}={reference}"
                with_prefix(label, inputs.check_maker, role, kinds[source])
                if reference != source:
                    with_prefix(label, inputs.check_snapshot, role, reference, configs[source])
                continue
            if planning and role in inputs.MODEL_ROLES and shapes.is_elsewhere(reference):
                continue
            path = given.path(step, role, reference)
            seen = (role, path, *step.config.get("fields", {}).values())
            if seen not in checked:
                with_prefix(f"{where}: inputs.{label}", inputs.check, role, path, step.config)
                checked.add(seen)
    if not planning:
        check_meshes(to_run)


def check_meshes(to_run: Sequence[Step]) -> None:
    """Refuses meshes that the devices here do not give; asks for devices only if it must."""
    checked: list[dict[str, int]] = []
    for step in to_run:
        mesh = step.config["mesh"]
        if mesh not in checked and any(size != 1 for size in mesh.values()):
            from cai_jax.core.mesh import make_mesh

            with_prefix(f"step {step.name!r}", make_mesh, ConfigDict(mesh))
            checked.append(mesh)


def refuse_foreign_folders(workdir: Path, to_run: Sequence[Step]) -> None:
    """Refuses to take folders for unfinished steps where no run was made before."""
    if (workdir / RECORD).is_file():
        return
    for step in to_run:
        folder = workdir / step.name
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(
                f"{folder}: is there, and no step's, since {workdir} is not the workdir of a run "
                f"(no {RECORD}); choose another --workdir"
            )


def run(
    steps: Sequence[Step],
    workdir: Path,
    selected: Collection[str],
    overwritten: Collection[str],
    to_run: Sequence[Step],
    given: Outside,
) -> None:
    """Runs the steps `to_run` in order, with a line on stdout for each of the selected."""
    # Readers lose their manifest before what they read: at every moment a finished step's sources
    # are those it was made from.
    verify(to_run, workdir)
    hosts.wait("every host has verified what is there")
    for step in reversed(steps):
        if step.name in overwritten and hosts.is_first():
            (workdir / step.name / artifact.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(workdir / step.name / artifact.UNFINISHED, ignore_errors=True)
    for step in steps:
        if step in to_run:
            try:
                with termination.raising():
                    hosts.stop_if_asked()
                    run_step(step, workdir, given)
            except (KeyboardInterrupt, Terminated) as stop:
                by_user = isinstance(stop, KeyboardInterrupt)
                what = "interrupted" if by_user else "terminated"
                print(f"\n{what} in {step.name}; the same command goes on", file=sys.stderr)
                raise SystemExit(130 if by_user else termination.EXIT_STATUS) from None
            say(line(steps, step, workdir))
        elif step.name in selected:
            # Of a run that was killed just after it had finished the step.
            if hosts.is_first():
                shutil.rmtree(workdir / step.name / artifact.UNFINISHED, ignore_errors=True)
            say(finished_line(steps, step, workdir))


def run_step(step: Step, workdir: Path, given: Outside) -> None:
    """Runs one step in a folder of its own, from its last good checkpoint if there is one, and
    finishes it with its manifest."""
    folder = workdir / step.name
    hashes = input_hashes(step, workdir, given)
    hosts.wait(f"{step.name} is to begin")
    saved = begin(step, folder, hashes) if hosts.is_first() else 0.0
    hosts.wait(f"{step.name} begins")

    def path(role: str, reference: str) -> Path:
        source = source_of(reference, step.sources)
        if source is None:
            return given.path(step, role, reference)
        _, snapshot = checkpoints.split_snapshot(reference.removeprefix(source))
        folder = workdir / source
        return folder if snapshot is None else checkpoints.snapshot_folder(folder, snapshot)

    paths = step.map_inputs(path)
    started = time.monotonic()
    try:
        result = with_prefix(
            f"step {step.name!r}", step.stage.run, ConfigDict(step.config).lock(), paths, folder
        )
    except FileNotFoundError as error:
        # A file of the step's own that is missing is our fault, not the user's.
        if error.filename is None or Path(error.filename).is_relative_to(folder):
            raise
        raise InputError(f"step {step.name!r}: {vanished(error)}") from None
    seconds = round(saved + time.monotonic() - started, 3)
    counts = {name: getattr(value, "tolist", lambda v=value: v)() for name, value in result.items()}
    hosts.wait(f"{step.name} is written")
    if hosts.is_first():
        files = artifact.file_hashes(folder)
        manifest = {
            "kind": step.kind,
            "config": step.config,
            "seed": step.config["seed"],
            "inputs": hashes,
            "package_version": __version__,
            "seconds": seconds,
            "records": counts["records"],
            "tokens": counts["tokens"],
            "counts": counts,
            "hash": artifact.combined_hash(files),
            "files": files,
        }
        artifact.write_manifest(folder, manifest)
        shutil.rmtree(folder / artifact.UNFINISHED)
    hosts.wait(f"{step.name} is finished")


def with_prefix(where: str, function: Any, *arguments: Any) -> Any:
    """Calls `function`; says at the head of a user's error where it came up."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def line(steps: Sequence[Step], step: Step, workdir: Path) -> str:
    """A finished step's time and counts, aligned with those of the other steps."""
    manifest = artifact.read_manifest(workdir / step.name) or {}
    width = max(len(other.name) for other in steps)
    return (
        f"{step.name:<{width}}  {duration(manifest['seconds']):>12}  "
        f"{manifest['records']:>11,} records  {manifest['tokens']:>15,} tokens"
    )


def finished_line(steps: Sequence[Step], step: Step, workdir: Path) -> str:
    """The same for a step that was finished before this run."""
    manifest = artifact.read_manifest(workdir / step.name) or {}
    made_by = manifest.get("package_version")
    remark = "finished before" if made_by == __version__ else f"finished before, by {made_by}"
    return f"{line(steps, step, workdir)}  ({remark})"


if __name__ == "__main__":
    main()
