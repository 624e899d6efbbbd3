"""The hosts of a run: which of how many this process is, and what they do together.

Every host runs the same program over the same records, in lock step; arrays on devices are global,
and each host feeds and holds its own part of them. The first host alone writes single files and
speaks on stdout; records are written as one shard a host; errors come from every host. Each reads
and tokenizes its share of what is trained on (`data/shares.py`), and fills those rows of a batch
that its devices hold (`models/placing.py`).

Which hosts there are is JAX's own knowledge (`jax.distributed`): nothing is kept here, and a
process that has not joined others is the only one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cai_jax.errors import InputError, Terminated

AUTO = "auto"  # in the place of an address: JAX asks the cluster (TPU pod, GKE, Slurm, Open MPI)
HEARTBEAT_SECONDS = 60  # a host that is silent so long is gone, and the others stop
JOIN_SECONDS = 300  # for all hosts to come
SHUTDOWN_SECONDS = 60
TERMINATED = 128 + signal.SIGTERM  # as a shell has it of a process that SIGTERM ended
EXCHANGED_BYTES = 2**24  # of each host at a time: all of them lie on every device
LOST = 1  # the exit status of a host that has lost the others
# What the errors of collectives and of the coordinator have in them when a host is gone.
SIGNS_OF_LOSS = ("gloo", "unavailable", "heartbeat", "coordination", "connection", "deadline")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How to join; `count` and `index` are None where JAX asks the cluster."""

    coordinator: str  # HOST:PORT of the first host, or AUTO
    count: int | None = None
    index: int | None = None


def _joined() -> bool:
    # What does not use JAX is alone, and must not wait for its import.
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def index() -> int:
    """The number of this host, from 0."""
    if not _joined():
        return 0
    import jax

    return jax.process_index()


def count() -> int:
    """How many hosts there are."""
    if not _joined():
        return 1
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this host writes what one host writes."""
    return index() == 0


def share(total: int) -> slice:
    """This host's part of `total` records: contiguous, in the order of the hosts."""
    i, n = index(), count()
    return slice(total * i // n, total * (i + 1) // n)


def wait(what: str) -> None:
    """Waits until every host has come here; `what` must be the same on all."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


# The points at which hosts may stop together, over all steps of a run; as JAX's, of the process.
_points = itertools.count(1)


def asked_to_stop() -> bool:
    """Whether one of several hosts got SIGTERM: all ask equally often, and learn it at one point.

    Where there is one host the signal is its own (`core/termination.py`), and this is False.
    """
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))


def stop_if_asked() -> None:
    """Ends the run, on all hosts together, where nothing need be saved.

    Raises:
        Terminated: as `asked_to_stop` says.
    """
    if asked_to_stop():
        raise Terminated


def first_says(answer: bool) -> bool:
    """The first host's answer, on every host: all must ask."""
    if count() == 1:
        return answer
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(answer))


def gathered(make: Callable[[], Any]) -> list[Any]:
    """What `make` gives on each host, in their order, as JSON has it; all hosts must call.

    Raises:
        InputError: on all hosts, so that none waits for another: that of the first to raise one.
    """
    if count() == 1:
        return [make()]
    try:
        said = {"made": make()}
    except InputError as error:
        said = {"error": str(error)}
    parts = [json.loads(part) for part in exchanged(json.dumps(said).encode())]
    for part in parts:
        if "error" in part:
            raise InputError(part["error"])
    return [part["made"] for part in parts]


def exchanged(part: bytes) -> list[bytes]:
    """The bytes of each host, in their order; all hosts must call."""
    import numpy as np
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.array(len(part), np.int32))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(part)] = np.frombuffer(part, np.uint8)
    pieces = [
        multihost_utils.process_allgather(padded[start : start + EXCHANGED_BYTES])
        for start in range(0, len(padded), EXCHANGED_BYTES)
    ]
    return [of[:size].tobytes() for of, size in zip(np.concatenate(pieces, axis=1), sizes)]


def asked(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    environment: Mapping[str, str],
) -> Hosts | None:
    """Which hosts to join, by flags or else by the environment; None: there are no others.

    - `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; in a JobSet or an indexed
      Job the last is `JOB_COMPLETION_INDEX`, which Kubernetes sets;
    - a Slurm step of several tasks; the hosts of a TPU slice or of several on GKE: JAX knows them.
      On TPU VMs nothing in the environment says that there are others: give AUTO.

    Raises:
        InputError: half of what is needed, or numbers that do not fit.
    """
    if coordinator is None and count is None and index is None:
        return _from_environment(environment)
    if coordinator == AUTO and count is None and index is None:
        return Hosts(AUTO)
    if coordinator is None or count is None or index is None:
        raise InputError(
            "hosts: expected --coordinator=HOST:PORT, --num_hosts and --host together, or "
            f"--coordinator={AUTO} alone"
        )
    return _checked(coordinator, count, index)


def _from_environment(environment: Mapping[str, str]) -> Hosts | None:
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address and "JAX_NUM_PROCESSES" in environment:
        number = environment.get("JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX", ""))
        total = environment["JAX_NUM_PROCESSES"]
        if not (number.isdecimal() and total.isdecimal()):
            raise InputError(
                "JAX_COORDINATOR_ADDRESS is set: expected numbers in JAX_NUM_PROCESSES and in "
                f"JAX_PROCESS_ID or JOB_COMPLETION_INDEX, found {total!r} and {number!r}"
            )
        return _checked(address, int(total), int(number))
    slurm = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    slice_of_gke = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1") != "1"
    return Hosts(AUTO) if slurm or slice_of_gke or slices else None


def _checked(coordinator: str, count: int, index: int) -> Hosts | None:
    if not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise InputError(f"coordinator: expected HOST:PORT, found {coordinator!r}")
    if not 0 <= index < count:
        raise InputError(f"host: expected 0 to {count - 1} of {count} hosts, found {index}")
    return Hosts(coordinator, count, index) if count > 1 else None


def join(hosts: Hosts, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Joins the other hosts; before anything of JAX touches a device.

    Raises:
        InputError: the coordinator was not reached, or the cluster does not say who the hosts are.
    """
    import jax

    try:
        jax.distributed.initialize(
            None if hosts.coordinator == AUTO else hosts.coordinator,
            hosts.count,
            hosts.index,
            cluster_detection_method="deactivate" if hosts.count else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(
            f"coordinator {hosts.coordinator}: the hosts could not join: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None


@contextlib.contextmanager
def together(hosts: Hosts | None, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Joins, and ends this process at once where it fails, so that the others stop too.

    Without others it does nothing. A host that failed must not wait for them to end: they wait for
    it, in the midst of a collective.
    """
    if hosts is None:
        yield
        return
    join(hosts, heartbeat_seconds)
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        status = _told(error)
        if status == TERMINATED:  # all hosts come here, and none is to miss the others
            with contextlib.suppress(Exception):
                sys.modules["jax"].distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _told(error: BaseException) -> int:
    """Says on stderr why this host stops; returns its exit status."""
    text = " ".join(str(error).split())
    where = f"host {index()} of {count()}"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else LOST
    if isinstance(error, InputError | FloatingPointError):
        print(f"error: {where}: {text}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if any(sign in text.lower() for sign in SIGNS_OF_LOSS):
        print(
            f"error: {where}: another host is gone ({text[:200]}); what it said is in its own log; "
            "start all hosts again, and the same command goes on",
            file=sys.stderr,
        )
        return LOST
    traceback.print_exception(error)
    print(f"error: {where}: {type(error).__name__}; the other hosts stop too", file=sys.stderr)
    return 1
