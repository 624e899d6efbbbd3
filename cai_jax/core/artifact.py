"""Artifacts: the folder of a step, finished when its manifest is there, and what it hashes to."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.core import checkpoint
from cai_jax.errors import InputError

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # in a step's folder: what it goes on from; no part of the artifact


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a finished step."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished step; None for an unfinished or missing one.

    Raises:
        InputError: the manifest cannot be read, or is no JSON object.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a manifest in JSON: {error}; remove it to run the step again"
        ) from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected an object; remove it to run the step again")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Finishes a step: the last file written, and there as a whole or not at all."""
    write_json(folder / MANIFEST, manifest)


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by an atomic rename, on disk before the new name is; the first host alone."""
    if not hosts.is_first():
        return
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but its manifest, by relative name, sorted."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    names = sorted(name.as_posix() for name in files if name.parts[0] not in (MANIFEST, UNFINISHED))
    return {name: _sha256(folder / name) for name in names}


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One hash of a folder from those of its files; names count, order does not.

    Files that say when the others were written do not count: made again, a model has its hash.
    """
    counted = {n: digest for n, digest in hashes.items() if Path(n).name not in checkpoint.TIMES}
    lines = (f"{digest}  {name}\n" for name, digest in sorted(counted.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    return combined_hash(file_hashes(path)) if path.is_dir() else _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
