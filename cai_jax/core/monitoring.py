"""What people watch while a training runs: TensorBoard, Weights & Biases, a heartbeat, profiles.

All of it stands in WORKDIR/_logs/<step>, beside the steps: it has times in it, and an artifact must
be the same however often it is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ml_collections import ConfigDict

from cai_jax.core import topology
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

LOGS = "_logs"  # no step has this name: those begin with a letter or a digit
WRITERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # extra of the package -> its module
# What JAX calls the chips of `topology.CHIPS`.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
}

Write = Callable[[int, Mapping[str, float]], None]
Numbered = TypeVar("Numbered", bound=tuple[int, Any])


def default_config() -> ConfigDict:
    """Nothing of it. A config's own `monitoring` group holds for all of its steps."""
    return ConfigDict(
        {
            "writers": (),  # beside metrics.jsonl: "tensorboard", "wandb"
            "heartbeat_seconds": 0.0,  # from one line on stderr to the next, at least; 0: none
            "profile_steps": (0, 0),  # the first and last update to record; (0, 0): none
        }
    )


def check(config: Mapping[str, Any]) -> None:
    """Refuses what cannot be done.

    Raises:
        InputError: an unknown writer, or one that is not installed; numbers that mean nothing.
    """
    for name in config["writers"]:
        if name not in WRITERS:
            known = ", ".join(WRITERS)
            raise InputError(f"monitoring.writers: expected some of {known}, found {name!r}")
        if importlib.util.find_spec(WRITERS[name]) is None:
            raise InputError(
                f"monitoring.writers: {name} needs {WRITERS[name]}, which is not installed; "
                f"pip install 'cai_jax[{name}]'"
            )
    if config["heartbeat_seconds"] < 0:
        found = config["heartbeat_seconds"]
        raise InputError(f"monitoring.heartbeat_seconds: expected 0 or more, found {found}")
    steps = tuple(config["profile_steps"])
    if steps != (0, 0) and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise InputError(
            f"monitoring.profile_steps: expected the first and the last update, as 10,12, or 0,0; "
            f"found {','.join(map(str, steps))}"
        )


def log_folder(step_folder: Path) -> Path:
    """Where the logs of a step stand."""
    return step_folder.parent / LOGS / step_folder.name


def open_writers(names: Sequence[str], step_folder: Path) -> tuple[list[Write], Callable[[], None]]:
    """Functions that write scalars of an update, and one that closes what is behind them."""
    folder = log_folder(step_folder)
    writes: list[Write] = []
    closes: list[Callable[[], None]] = []
    if "tensorboard" in names:
        board = importlib.import_module(WRITERS["tensorboard"]).SummaryWriter(str(folder))

        def write_board(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)
            board.flush()

        writes.append(write_board)
        closes.append(board.close)
    if "wandb" in names:
        folder.mkdir(parents=True, exist_ok=True)
        wandb = importlib.import_module(WRITERS["wandb"])
        # Project, entity and whether to be online are wandb's own environment variables.
        run = wandb.init(name=step_folder.name, group=step_folder.parent.name, dir=str(folder))
        writes.append(lambda step, scalars: run.log(dict(scalars), step=step))
        closes.append(run.finish)

    def close() -> None:
        for function in closes:
            function()

    return writes, close


class Heartbeat:
    """Tokens a second and MFU between two lines of metrics, and a line that says so now and then.

    The first line of metrics sets the clock: what is before it is compilation.
    """

    def __init__(
        self,
        label: str,
        every: float,
        mfu_per_token: float | None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes seconds between two lines (0: none), and what `mfu_per_token` gives."""
        self._label, self._every, self._mfu_per_token = label, every, mfu_per_token
        self._stream, self._clock = stream, clock
        self._last: tuple[float, int] | None = None
        self._shown = clock()

    def beat(self, step: int, tokens: int, loss: float | None = None) -> dict[str, float]:
        """The rates since the last call: {"tokens_per_second", "mfu"}, as far as they are known.

        Args:
            step: updates made.
            tokens: seen up to now.
            loss: to be shown.
        """
        now, last = self._clock(), self._last
        self._last = now, tokens
        if last is None or now <= last[0] or tokens <= last[1]:
            return {}
        rates = {"tokens_per_second": (tokens - last[1]) / (now - last[0])}
        if self._mfu_per_token is not None:
            rates["mfu"] = rates["tokens_per_second"] * self._mfu_per_token
        if self._every and now - self._shown >= self._every:
            self._shown = now
            print(self.line(step, rates, loss), file=self._stream or sys.stderr, flush=True)
        return rates

    def line(self, step: int, rates: Mapping[str, float], loss: float | None) -> str:
        """The text of a heartbeat."""
        text = f"{self._label}: update {step:,}"
        if loss is not None:
            text += f", loss {loss:.4f}"
        text += f", {rates['tokens_per_second']:,.0f} tokens/s"
        return f"{text}, MFU {100 * rates['mfu']:.1f} %" if "mfu" in rates else text


def mfu_per_token(flops_per_token: float, mesh: Mesh) -> float | None:
    """MFU at one token a second; None where the peak of the devices is not known.

    Args:
        flops_per_token: of the matrix products that the model asks for, recomputation not counted:
            6 a parameter in training. Attention's own are left out, so that MFU is not flattered.
        mesh: the devices at work.
    """
    chip = topology.CHIPS.get(DEVICE_KINDS.get(mesh.devices.flat[0].device_kind, ""))
    return flops_per_token / (chip.flops * mesh.size) if chip else None


def size(tree: Any) -> int:
    """Numbers in a tree of arrays."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def training_flops(trained: Any, frozen: Any = None) -> float:
    """FLOPs a token of training: forward, backward, and gradients of what is trained alone."""
    return 6.0 * size(trained) + 4.0 * size(frozen)


def profiled(
    numbered: Iterable[Numbered], chosen: Sequence[int], step_folder: Path
) -> Iterator[Numbered]:
    """The numbered batches of a training loop, and a profile of what is done with the chosen ones.

    `tensorboard --logdir WORKDIR/_logs` shows it (with the plugin of its name), as Perfetto does.

    Args:
        numbered: (number of the update, batch, ...), ascending.
        chosen: the first and the last number to record; (0, 0): none.
        step_folder: the profile stands in its logs.
    """
    first, last = chosen
    recording = False
    try:
        for item in numbered:
            if first <= item[0] <= last and not recording:
                import jax

                jax.profiler.start_trace(str(log_folder(step_folder)))
                recording = True
            yield item
            if recording and item[0] >= last:
                _stop_trace()
                recording = False
    finally:
        if recording:
            _stop_trace()


def _stop_trace() -> None:
    import jax

    # The host is ahead of the devices: what they were given must be done to be seen.
    jax.block_until_ready(jax.live_arrays())
    jax.profiler.stop_trace()
