"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from cai_jax.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder`/.lock, which names the process that holds it.

    The kernel holds the lock and lets go when the process ends, however it ends: a file that a
    killed run left behind locks nothing, even if another process has got its id by now.

    Raises:
        InputError: another process holds it.
    """
    path = folder / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another run holds it ({holder or 'just started'}); "
                "wait for it, or choose another --workdir"
            ) from None
        if holder:
            print(f"taking over from {holder}, which did not end properly", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            # Emptied, not removed: another run may have opened it already and wait at the lock.
            file.truncate(0)
