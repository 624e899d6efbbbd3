"""Splits of prepared TFDS data sets: "tfds:hh_rlhf/harmless-base:train".

A split is named by the path `<data_dir>/<data set>/<config>/<version>/<split>`, which is no file:
the files of a data set belong together. Slices ("train[:100]", "train[10%:]") are splits too.
Records are read by `tfds.data_source` from ArrayRecord files; TensorFlow is never imported.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cai_jax.errors import InputError

PREFIX = "tfds:"
INFO = "dataset_info.json"
REFERENCE = re.compile(r"tfds:(?P<name>\w+(/[\w.-]+){0,2}):(?P<split>.+)")


def resolve(reference: str, data_dir: str = "") -> Path:
    """The path of a split.

    Args:
        reference: "tfds:<data set>[/<config>[/<version>]]:<split>".
        data_dir: where data sets were prepared; "": what TFDS_DATA_DIR names, or TFDS's default.

    Raises:
        InputError: no such data set or split, or another form of reference.
    """
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise InputError(
            f"{reference}: expected tfds:DATASET/CONFIG:SPLIT, as in tfds:hh_rlhf/harmless-base:"
            "train"
        )
    root = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    ).expanduser()
    folder = root / match["name"]
    if not (folder / INFO).is_file():
        versions = [path.parent for path in folder.glob(f"*/{INFO}")]
        if not versions:
            have = sorted(str(p.parent.parent.relative_to(root)) for p in root.glob(f"**/{INFO}"))
            raise InputError(
                f"{reference}: expected a prepared data set in {folder}, found none (of "
                f"{', '.join(dict.fromkeys(have)) or 'none'} there); run python -m cai_jax.prepare"
            )
        folder = max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    path = folder / match["split"]
    _source(path)
    return path


def is_split(path: Path) -> bool:
    """Whether a path names a split, and no file or folder."""
    return (path.parent / INFO).is_file() and not path.exists()


def name(path: Path) -> str:
    """ "harmless-base:train", for messages and ids."""
    return f"{path.parent.parent.name}:{path.name}"


def examples(path: Path) -> Iterator[dict[str, Any]]:
    """The examples of a split, in order, as a JSON file would give them: text, numbers, lists."""
    return (read() for read in unread(path))


def unread(path: Path) -> list[Callable[[], dict[str, Any]]]:
    """`examples`, each of which is read when it is called."""
    source = _source(path)
    return [functools.partial(_example, source, index) for index in range(len(source))]


def _example(source: Any, index: int) -> dict[str, Any]:
    example: dict[str, Any] = _plain(source[index])
    return example


def count(path: Path) -> int:
    """How many examples a split has."""
    return len(_source(path))


def _source(path: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(path.parent))
        return builder.as_data_source(split=path.name)
    except Exception as error:  # TFDS raises many types; all mean the same here
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path.parent}: expected a TFDS data set in ArrayRecord files with split "
            f"{path.name!r}: {reason}"
        ) from None


def _plain(value: Any) -> Any:
    """Bytes to text, arrays to lists, numpy's scalars to Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):  # arrays and numpy's scalars
        return _plain(value.tolist())
    return value
