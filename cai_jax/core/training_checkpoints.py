"""Checkpoints inside a training step, and how an interrupted one goes on from the last good one.

    STEP/unfinished/00000120/state/         Orbax: parameters, the optimizer's state, the step
                             position.json  the rest: where the data are, counts, controllers

position.json is written last, when Orbax has ended, and holds the hashes of the files of state/:
Orbax does not notice a changed byte in an array. It also has the size of every other file of the
step at that moment, so that what was appended later can be cut off. Without it, or where a hash is
another, a checkpoint is not a good one.

    STEP/unfinished/best/00000120/  parameters whose held-out loss was the lowest up to then; all of
                             them stay until the step is finished, for it may go back
"""

import hashlib
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.core import artifact, checkpoint
from cai_jax.core.termination import deferred
from cai_jax.errors import InputError, Terminated

STATE = "state"
POSITION = "position.json"


def default_config(every: int) -> ConfigDict:
    """The group `checkpoints` of a training step; what is in it changes no result."""
    config = ConfigDict()
    config.every = every  # updates (of PPO: iterations) between two; 0: on SIGTERM alone
    config.keep = 2  # the newest that are kept until the step is finished
    return config


def check(config: ConfigDict) -> None:
    """Refuses a group `checkpoints` out of range.

    Raises:
        InputError: naming the parameter.
    """
    for name, least in (("every", 0), ("keep", 1)):
        if config[name] < least:
            raise InputError(f"checkpoints.{name}: expected at least {least}, found {config[name]}")


def any_good(folder: Path) -> bool:
    """Whether the folder of an unfinished step has a checkpoint that was written to its end."""
    unfinished = folder / artifact.UNFINISHED
    return any((unfinished / f"{n:08d}" / POSITION).is_file() for n in _numbers(unfinished))


def rewind(folder: Path) -> int | None:
    """Puts the folder of an interrupted step back to its last good checkpoint.

    Later checkpoints, files and lines are removed; without a good checkpoint, all. A checkpoint
    that is incomplete or damaged is named on stderr.

    Returns:
        The number of the update it goes on after; None: it begins anew.
    """
    unfinished = folder / artifact.UNFINISHED
    bad, good = [], None
    content: dict[str, Any] = {}
    for number in reversed(_numbers(unfinished)):
        fault, content = _read(folder, number)
        if fault is None:
            good = number
            break
        bad.append(f"checkpoint {number} {fault}")
    if bad or good is not None:
        bad.append(f"goes on from checkpoint {good}" if good is not None else "begins anew")
        print(f"{folder.name}: {'; '.join(bad)}", file=sys.stderr)
    sizes = content["files"] if good is not None else {}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before it
        name = path.relative_to(folder).as_posix()
        if path.is_relative_to(unfinished):
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[name]:
            with open(path, "r+b") as file:
                file.truncate(sizes[name])
    for path in unfinished.glob("*"):
        if path.name.isdecimal() and (good is None or int(path.name) > good):
            shutil.rmtree(path)
    return good


class TrainingCheckpoints:
    """Those of one step. SIGTERM waits for the next of them while this is open.

    with TrainingCheckpoints(folder, config.checkpoints, inputs["model"]) as saves:
        state, at = saves.restored(state, {"number": 0})
        for number in range(at["number"] + 1, num_steps + 1):
            state = step(state)
            if saves.due(number):
                saves.save(number, state, {"number": number})
    """

    def __init__(self, folder: Path, config: ConfigDict, model: Any):
        """`model` is the last good one before the first checkpoint: what training begins from."""
        self.name, self.model = folder.name, model
        self._folder, self._every, self._keep = folder, config.every, config.keep
        self._unfinished = folder / artifact.UNFINISHED
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._stop = False
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._asked = hosts.asked_to_stop
        if hosts.count() == 1:
            self._asked = self._open.enter_context(deferred())
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._wait()
        finally:
            self._open.__exit__(*error)

    @property
    def last_good(self) -> str:
        """The path of the last good checkpoint; `model`, before the first."""
        if self._writing is not None:
            self._writing.join()
        numbers = [n for n in _numbers(self._unfinished) if (self._path(n) / POSITION).is_file()]
        return str(self._path(numbers[-1]) if numbers else self.model)

    def restored(self, state: Any, start: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The state and position of the last checkpoint; without one, what is given.

        Args:
            state: arrays as placed before the first update. Their memory is given back before the
                arrays of the checkpoint are read to where they lay, on whatever mesh.
            start: the position before the first update, in numbers, texts, lists and dicts.

        Raises:
            InputError: the checkpoint is of another training.
        """
        numbers = _numbers(self._unfinished)
        if not numbers:
            return state, dict(start)
        import jax

        path = self._path(numbers[-1])
        content = json.loads((path / POSITION).read_text(encoding="utf-8"))["content"]
        position = json.loads(content["position"])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        try:
            state = checkpoint.restore(path / STATE, abstract)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: not a checkpoint of this training ({type(error).__name__}); begin it "
                f"anew with --overwrite={self._folder.name}"
            ) from error
        return state, position

    def due(self, number: int) -> bool:
        """Whether to save after update `number`; on several hosts all get the same answer."""
        self._stop = self._asked()
        return self._stop or bool(self._every and number % self._every == 0)

    def save(self, number: int, state: Any, position: Mapping[str, Any]) -> None:
        """Begins to save; waits for the end only where SIGTERM asks for it.

        Args:
            number: of the update that was made last, from 1.
            state: a tree of arrays, good ones: it is called after a look at the last metrics. When
                this returns, they may be donated.
            position: as `start` of `restored`.

        Raises:
            Terminated: SIGTERM came; all is saved.
            OSError: it could not be written.
        """
        import jax

        self._wait()
        position = jax.tree.map(lambda x: x.item() if hasattr(x, "item") else x, position)
        path = self._path(number)
        path.mkdir(parents=True, exist_ok=True)
        # A text, since JSON proper has no NaN, and a measure that is not there yet may be one.
        content: dict[str, Any] = {"number": number, "position": json.dumps(position)}
        # The first host writes this, and the files of the step, which may change under the others.
        content["files"] = _sizes(self._folder) if hosts.is_first() else {}
        wait = checkpoint.save_async(path / STATE, state)
        self._writing = threading.Thread(target=self._finish, args=(path, content, wait))
        self._writing.start()
        if self._stop:
            self._wait()
            raise Terminated

    def _finish(self, path: Path, content: dict[str, Any], wait: Any) -> None:
        """Waits for Orbax, writes the position, and removes the oldest checkpoints."""
        try:
            wait()
            if hosts.is_first():
                for name in content["files"]:  # on disk before what counts on them
                    with open(self._folder / name, "rb") as file:
                        os.fsync(file.fileno())
                content["state"] = artifact.file_hashes(path / STATE)
                artifact.write_json(path / POSITION, {"hash": _hash(content), "content": content})
                for old in _numbers(self._unfinished)[: -self._keep]:
                    shutil.rmtree(self._path(old))
        except BaseException as error:
            self._error = error

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _path(self, number: int) -> Path:
        return self._unfinished / f"{number:08d}"


class Best:
    """Of the parameters that were measured, those whose held-out loss is the lowest."""

    def __init__(self, folder: Path, position: Sequence[float] = (0, math.inf)):
        """`position` as it was saved: [number of the update, loss]."""
        self._folder = folder / artifact.UNFINISHED / "best"
        self.position = list(position)

    def offer(self, number: int, loss: float, params: Any) -> None:
        """Keeps the parameters after update `number`, if their loss is lower than all before."""
        if not loss < self.position[1]:
            return
        path = self._path(number)
        if hosts.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed after its checkpoint
        hosts.wait(f"the best is {number}")
        checkpoint.save(path, params)
        self.position = [number, loss]

    def restored(self, params: Any) -> Any:
        """The best parameters, as the given ones lie; these, if none were offered."""
        number = int(self.position[0])
        return checkpoint.restore(self._path(number), params) if number else params

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}"


def _numbers(unfinished: Path) -> list[int]:
    """Of the checkpoints, good or not, in order."""
    return sorted(int(path.name) for path in unfinished.glob("*") if path.name.isdecimal())


def _read(folder: Path, number: int) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint, in words, or None; and the content of its position.json."""
    path = folder / artifact.UNFINISHED / f"{number:08d}"
    try:
        found = json.loads((path / POSITION).read_text(encoding="utf-8"))
        content = found["content"]
        if found["hash"] != _hash(content):
            return f"is damaged ({POSITION})", {}
    except FileNotFoundError:
        return "is incomplete", {}
    except (ValueError, KeyError, TypeError):
        return f"is damaged ({POSITION})", {}
    hashes = artifact.file_hashes(path / STATE)
    changed = [n for n, digest in content["state"].items() if hashes.get(n) != digest]
    if changed:
        return f"is damaged ({STATE}/{changed[0]})", {}
    for name, size in content["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            return f"has lost a part of {name}", {}
    return None, content


def _sizes(folder: Path) -> dict[str, int]:
    """Of the step's own files, by relative name."""
    names = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in sorted(names.items())
        if name.parts[0] != artifact.UNFINISHED
    }


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
