"""Checkpoints of trees of arrays: the only place that knows Orbax (its v1 interface)."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# How tensorstore says it, by its versions.
OS_ERROR = re.compile(r"os_error_code='(\d+)'|\[OS error (\d+):")


# Files of Orbax that have the time of day in them, and nothing that is restored.
TIMES = ("_CHECKPOINT_METADATA", "commit_success.txt")


def save(folder: Path, tree: Any) -> None:
    """Writes `tree` (arrays, numbers, random keys) to `folder`, whole or not at all.

    The same tree on the same mesh makes the same bytes in the same files, but for TIMES.

    Args:
        folder: must not exist; its parent must.
        tree: any pytree; on several hosts every process calls with the same tree.

    Raises:
        OSError: it could not be written: a full disk, say.
    """
    context = _orbax().Context()
    # Files of its database have random names and numbers; without it, an array has its own files.
    context.array.saving.use_ocdbt = False
    with _os_errors(folder), _unmissed(), context:
        _orbax().save(Path(folder).absolute(), tree)


def save_async(folder: Path, tree: Any) -> Callable[[], None]:
    """Begins what `save` does, and returns a function that waits for its end.

    When it returns, the arrays are on the host: the caller may donate them.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_unmissed())
        with _os_errors(folder):
            response = _orbax().save_async(Path(folder).absolute(), tree)
        until_its_end = stack.pop_all()

    def wait() -> None:
        with until_its_end, _os_errors(folder):
            response.result()

    return wait


def restore(folder: Path, abstract_tree: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
        folder: as given to `save`.
        abstract_tree: the tree's structure, with arrays or `jax.ShapeDtypeStruct`s as leaves. Where
            they carry a sharding, the arrays are placed accordingly, on whatever mesh; else, on the
            default device. None: nested dicts and lists of numpy arrays.
    """
    import jax
    import numpy as np

    if abstract_tree is None:
        with _unmissed():
            return jax.tree.map(np.asarray, _orbax().load(Path(folder).absolute()))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        sharding = getattr(leaf, "sharding", None) or device
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with _unmissed():
        return _orbax().load(Path(folder).absolute(), jax.tree.map(abstract, abstract_tree))


@contextlib.contextmanager
def _unmissed() -> Iterator[None]:
    """Drops what Orbax says besides raising it: that a folder has no database (what is not restored
    raises), and the tracebacks of its threads, of which a full disk ends three."""
    said = (
        "Skipping merge of OCDBT",
        "TensorStore data files not found",
        "_SignalingThread.run() raised an exception",
    )
    log = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in said)

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


@contextlib.contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """Tensorstore says what the system refused in the text of errors of many types."""
    try:
        yield
    except Exception as error:
        found = OS_ERROR.search(str(error))
        if found is None or isinstance(error, OSError):
            raise
        number = int(found[1] or found[2])
        raise OSError(number, os.strerror(number), str(folder)) from None


def _orbax() -> Any:
    # The interface has two addresses: newer releases also have it without `experimental`.
    try:
        from orbax.checkpoint import v1
    except ImportError:
        from orbax.checkpoint.experimental import v1
    return v1
