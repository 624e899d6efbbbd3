"""SIGTERM: how a run ends that is asked to (a preempted machine, `kill`, a scheduler)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from cai_jax import hosts
from cai_jax.errors import Terminated

EXIT_STATUS = hosts.TERMINATED


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """SIGTERM raises `Terminated` wherever the main thread is, as Ctrl-C does KeyboardInterrupt."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _handler(terminate):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """SIGTERM waits: the function that this gives says whether it came.

    Raises:
        Terminated: at the end, if it came.
    """
    asked = threading.Event()
    with _handler(lambda number, frame: asked.set()):
        yield asked.is_set
    if asked.is_set():
        raise Terminated


@contextlib.contextmanager
def _handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Python lets the main thread alone set handlers; elsewhere (a notebook's, a test's thread)
    # signals are not ours. On several hosts SIGTERM is JAX's, which tells all of them:
    # `hosts.asked_to_stop`.
    if hosts.count() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
