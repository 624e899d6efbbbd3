"""What of a workdir is finished, and whether a config may go on in it."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_jax import inputs as outside
from cai_jax.core import artifact, goodput, training_checkpoints
from cai_jax.core.configuration import nearest
from cai_jax.errors import InputError
from cai_jax.pipeline import Step, source_of


class Outside:
    """Paths and hashes of inputs that are no step's, each looked up once."""

    def __init__(self, names: Sequence[str]):
        """`names` of the steps, for messages about a reference that means nothing."""
        self._names = names
        self._paths: dict[tuple[bool, str], Path] = {}
        self._hashes: dict[Path, str] = {}

    def path(self, step: Step, role: str, reference: str) -> Path:
        """Where a reference of `step` leads."""
        key = (role in outside.MODEL_ROLES, reference)
        if key not in self._paths:
            try:
                self._paths[key] = outside.resolve(role, reference, step.config)
            except InputError as error:
                hint = "" if "/" in reference or ":" in reference else self._hint(reference)
                raise InputError(f"step {step.name!r}: inputs.{role}: {error}{hint}") from None
        return self._paths[key]

    def hash(self, step: Step, role: str, reference: str) -> str:
        """The fingerprint of what is there."""
        path = self.path(step, role, reference)
        if path not in self._hashes:
            try:
                self._hashes[path] = outside.fingerprint(path)
            except FileNotFoundError as error:
                raise vanished(error) from None
        return self._hashes[path]

    def _hint(self, reference: str) -> str:
        return f"; no step has this name either, {nearest(reference, self._names)}"


def input_hashes(step: Step, workdir: Path, given: Outside) -> dict[str, dict[str, str]]:
    """{label: {"reference", "hash"}} of a step whose sources are finished: a step's own hash
    stands in its manifest."""
    found = {}
    for label, role, reference in step.references():
        source = source_of(reference, step.sources)
        if source is not None:
            manifest = artifact.read_manifest(workdir / source)
            digest = manifest["hash"] if manifest else ""
        else:
            digest = given.hash(step, role, reference)
        found[label] = {"reference": reference, "hash": digest}
    return found


def difference(step: Step, manifest: Mapping[str, Any], hashes: Mapping[str, Any]) -> str | None:
    """What a finished step was made with that is not so now, in words; None if all is the same.

    The mesh does not count, nor how often is saved, nor who watches: none changes the result, but
    where the best checkpoint is kept.
    """
    missing = [key for key in ("kind", "config", "inputs", "hash") if key not in manifest]
    if missing:
        return f"its manifest has no {missing[0]!r}"
    old = _flat({"kind": manifest["kind"], **manifest["config"]}) | _referred(manifest["inputs"])
    new = _flat({"kind": step.kind, **step.config}) | _referred(hashes)
    ignored = ["mesh.", "checkpoints.", "monitoring."]
    if old.get("checkpoints.best") or new.get("checkpoints.best"):
        ignored.remove("checkpoints.")
    keys = [key for key in (*new, *old) if not key.startswith(tuple(ignored))]
    changed = [key for key in dict.fromkeys(keys) if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return f"{key} was {_short(old, key)}, now {_short(new, key)}{more}"
    for label, entry in hashes.items():
        if manifest["inputs"][label]["hash"] != entry["hash"]:
            return f"the content of inputs.{label} ({entry['reference']}) has changed"
    return None


def _referred(inputs: Mapping[str, Any]) -> dict[str, str]:
    return {f"inputs.{label}": entry["reference"] for label, entry in inputs.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def decide(
    steps: Sequence[Step],
    workdir: Path,
    selected: Collection[str],
    overwritten: Collection[str],
    given: Outside,
) -> list[Step]:
    """The steps that are to run, in order; the other selected ones are finished and unchanged.

    Args:
        steps: all steps of the config, ordered.
        workdir: it may not exist yet. Nothing is written.
        selected: names of the steps that are wanted.
        overwritten: names of the steps that run again though finished.
        given: where references to the outside lead.

    Raises:
        InputError: a finished step was made by another config, or from other inputs; a step is
            wanted whose source is neither finished nor wanted.
    """
    manifests = {s.name: artifact.read_manifest(workdir / s.name) for s in steps}
    finished = {name for name, manifest in manifests.items() if manifest is not None}
    _refuse_strangers(steps, workdir)
    forgotten = _readers(steps, overwritten) & finished - set(overwritten)
    if forgotten:
        names = ",".join(s.name for s in steps if s.name in forgotten | set(overwritten))
        raise InputError(
            f"--overwrite={','.join(overwritten)}: the finished steps "
            f"{', '.join(s.name for s in steps if s.name in forgotten)} read what it makes; "
            f"name them too: --overwrite={names}"
        )
    finished -= set(overwritten)
    needed = set(selected)
    for step in reversed(steps):
        needed |= set(step.sources) if step.name in needed else set()
    to_run, reasons = [], {}
    for step in steps:
        if step.name not in needed:
            continue
        if step.name in finished:
            gone = [name for name in step.sources if name not in finished]
            reason = f"it was made from {gone[0]}, which is no longer finished" if gone else None
            reason = reason or difference(
                step, manifests[step.name] or {}, input_hashes(step, workdir, given)
            )
            if reason:
                reasons[step.name] = reason
        elif step.name not in selected:
            raise InputError(
                f"--steps={','.join(selected)}: step {step.name!r} is needed and not finished; "
                "name it too"
            )
        else:
            if step.name not in overwritten:
                _refuse_to_lose(step, workdir / step.name)
            to_run.append(step)
    if reasons:
        name, reason = next(iter(reasons.items()))
        again = set(reasons) | _readers(steps, reasons) & finished
        names = ",".join(s.name for s in steps if s.name in again)
        raise InputError(
            f"{workdir / name}: made by another config: {reason}; choose another --workdir, "
            f"or run again with --overwrite={names}"
        )
    return to_run


def take(
    steps: Sequence[Step],
    wanted: Collection[str],
    workdir: Path,
    others: Sequence[Path],
    given: Outside,
) -> list[str]:
    """Takes finished steps of other workdirs that would become the same in this one.

    Files are linked where that can be done, else copied; the manifest comes last, as in a run.

    Args:
        steps: all steps of the config, ordered.
        wanted: names of those to take, if they are not finished here.
        workdir: of this run.
        others: workdirs, of which the first that has such a step gives it.
        given: where references to the outside lead.

    Returns:
        The names of what was taken.
    """
    taken = []
    for step in steps:
        folder = workdir / step.name
        if step.name not in wanted or artifact.is_finished(folder):
            continue
        if not all(artifact.is_finished(workdir / source) for source in step.sources):
            continue
        hashes = input_hashes(step, workdir, given)
        for other in (workdir_of / step.name for workdir_of in others):
            manifest = artifact.read_manifest(other)
            if manifest is None or difference(step, manifest, hashes):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            apart = shutil.ignore_patterns(artifact.MANIFEST, artifact.UNFINISHED)
            shutil.copytree(other, folder, ignore=apart, copy_function=_link)
            artifact.write_manifest(folder, manifest)
            taken.append(step.name)
            break
    return taken


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        shutil.copy2(source, target)


RECORD = "step.json"  # beside the checkpoints of an unfinished step: what it is made with


def begin(step: Step, folder: Path, hashes: Mapping[str, Any]) -> float:
    """Makes the folder of a step that is to run: empty, or as its last good checkpoint found it.

    It goes on only if all is as it was when it began, its inputs too.

    Returns:
        Seconds that earlier runs put into what it goes on from.
    """
    record = folder / artifact.UNFINISHED / RECORD
    made_with = _unfinished(folder)
    reason = difference(step, made_with, hashes) if made_with else "it is not known what made it"
    if reason is None:
        training_checkpoints.rewind(folder)
    elif folder.exists():
        if training_checkpoints.any_good(folder):
            print(f"{step.name}: begins anew: {reason}", file=sys.stderr)
        shutil.rmtree(folder)
    unfinished = folder / artifact.UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    given = {"kind": step.kind, "config": step.config, "inputs": hashes, "hash": ""}
    last = {"began": math.inf, "seconds": 0.0} | (made_with or {})
    seconds = round(goodput.saved_seconds(unfinished, last["began"], last["seconds"]), 3)
    artifact.write_json(record, given | {"began": time.time(), "seconds": seconds})
    return seconds


def _unfinished(folder: Path) -> dict[str, Any] | None:
    """What an unfinished step is made with; None if it is not known."""
    try:
        found = json.loads((folder / artifact.UNFINISHED / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_to_lose(step: Step, folder: Path) -> None:
    """Refuses to begin anew, for a changed config, what has checkpoints to go on from."""
    made_with = _unfinished(folder)
    if made_with is None or not training_checkpoints.any_good(folder):
        return
    old = made_with.get("inputs", {})
    # What an input holds is looked at when the step begins: its source may run before.
    inputs = {
        label: {"reference": reference, "hash": old.get(label, {}).get("hash")}
        for label, _, reference in step.references()
    }
    reason = difference(step, made_with, inputs)
    if reason:
        raise InputError(
            f"{folder}: unfinished, with checkpoints of another config: {reason}; choose another "
            f"--workdir, or begin it anew with --overwrite={step.name}"
        )


def verify(steps: Sequence[Step], workdir: Path) -> None:
    """Reads again what the steps to run will read of finished ones.

    Raises:
        InputError: a file is not what its step wrote: a damaged disk, or an edit.
    """
    made_now = {step.name for step in steps}
    sources = dict.fromkeys(name for step in steps for name in step.sources)
    for name in sources:
        manifest = artifact.read_manifest(workdir / name)
        if name in made_now or manifest is None:
            continue
        found = artifact.file_hashes(workdir / name)
        for file, digest in manifest.get("files", {}).items():
            if found.get(file) != digest:
                state = "changed" if file in found else "vanished"
                raise InputError(
                    f"{workdir / name / file}: it has {state} since step {name!r} wrote it; make "
                    f"it again with --overwrite={name} (and the steps that read it)"
                )


def vanished(error: FileNotFoundError) -> InputError:
    """What to say of an input that was there when the run began."""
    return InputError(f"{error.filename}: it has vanished since the run began; put it back")


def _refuse_strangers(steps: Sequence[Step], workdir: Path) -> None:
    names = [step.name for step in steps]
    for path in sorted(workdir.glob(f"*/{artifact.MANIFEST}")):
        if path.parent.name not in names:
            raise InputError(
                f"{path.parent}: made by another config: a finished step that this one does not "
                f"have (it has {', '.join(names)}); choose another --workdir"
            )


def _readers(steps: Sequence[Step], names: Collection[str]) -> set[str]:
    """The steps that read, directly or not, what the steps `names` make; not these themselves."""
    reached = set(names)
    for step in steps:
        if reached & set(step.sources):
            reached.add(step.name)
    return reached - set(names)
