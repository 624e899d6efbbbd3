"""What a training step carries from one batch to the next."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from cai_jax.core import sharding


class Checkpoints(Protocol):
    """What is said of a step's checkpoints where it stops."""

    @property
    def name(self) -> str:
        """Of the step."""

    @property
    def last_good(self) -> str:
        """A path."""


class TrainState(NamedTuple):
    """Parameters, the optimizer's state and the number of updates made."""

    params: Any
    optimizer_state: optax.OptState
    step: jax.Array  # [] int32


def create_state(
    params: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Any]:
    """The state before the first update, placed on the mesh, and its shardings."""
    _, shardings = abstract_state(params, optimizer, mesh)
    params = jax.device_put(params, shardings.params)
    create = jax.jit(lambda params: _first_state(params, optimizer), out_shardings=shardings)
    return create(params), shardings


def abstract_state(
    params: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Any]:
    """Shapes and dtypes of the state before the first update, and its shardings on the mesh."""
    state = jax.eval_shape(lambda params: _first_state(params, optimizer), params)
    return state, sharding.tree_shardings(state, mesh)


def _first_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def apply_gradients(
    state: TrainState, gradients: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after one update."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1)


def compiled_update(
    update: Callable[[TrainState, Any, Any], tuple[TrainState, Any]],
    mesh: Mesh,
    shardings: Any,
    frozen: Any,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Any]]:
    """The program of `update`(state, frozen, batch) -> (state, metrics).

    It takes over the memory of the state.

    Args:
        update: a pure function; metrics are scalars.
        mesh: the rows of a batch are split over it.
        shardings: of the state.
        frozen: what the update does not change: arrays, or their shapes.
    """
    return jax.jit(
        sharding.on_mesh(update, mesh),
        donate_argnums=0,
        in_shardings=(
            shardings,
            sharding.tree_shardings(frozen, mesh),
            sharding.batch_sharding(mesh),
        ),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def summed_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, parts: int
) -> tuple[Any, Any]:
    """Gradients of a loss that is a sum over the rows of a batch, a part of the rows at a time.

    What `loss` divides by must come from the whole batch, not from the part that it is given: then
    the sum over parts is the loss of the batch, whatever their number, and only memory changes.

    Args:
        loss: (params, batch) -> (scalar, sums), both sums over the rows.
        params: to differentiate by.
        batch: arrays [B, ...], or None.
        parts: B is a multiple of it; row b belongs to part b mod `parts`, so that each part is
            spread over the devices as the batch is.

    Returns:
        (gradients like `params`, sums over the whole batch).
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)  # [parts, B / parts, ...]

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    cuts = jax.tree.map(cut, batch)
    like = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], cuts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return lax.scan(add, zeros, cuts)[0]


def start(stream: Any) -> dict[str, Any]:
    """Where a training over an iterator of `data/pipeline.py` is before its first update."""
    return {"number": 0, "stream": stream.get_state(), "tokens": 0, "pending": [], "recent": []}


def fetched(
    pending: Sequence[Mapping[str, Any]],
    records: Sequence[Sequence[str]],
    last: int,
    saves: Checkpoints,
) -> list[dict[str, Any]]:
    """The metrics of the last updates, on the host; stops a training whose numbers are none.

    Args:
        pending: the metrics of each, on devices.
        records: the ids of the records of each.
        last: the number of the last of them, from 1.
        saves: those of the step.

    Raises:
        FloatingPointError: as `check_finite`, of the first bad one.
    """
    found = jax.device_get(list(pending))
    for i, (metrics, ids) in enumerate(zip(found, records), start=last - len(found) + 1):
        check_finite(metrics, f"update {i}", ids, saves)
    return found


def check_finite(
    metrics: Mapping[str, Any], where: str, records: Sequence[str], saves: Checkpoints
) -> None:
    """Stops a training whose numbers are no numbers any more, before anything is made of them.

    Raises:
        FloatingPointError: naming the step, the update, what is no number, up to eight records of
            the batch and the last good checkpoint.
    """
    bad = [f"{name} is {float(x)}" for name, x in metrics.items() if not math.isfinite(x)]
    if bad:
        ids = list(dict.fromkeys(records))
        raise FloatingPointError(
            f"{saves.name}: {where}: {', '.join(bad)}; the last good checkpoint is "
            f"{saves.last_good}, and nothing was written over it; lower learning_rate, or look at "
            f"records {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}"
        )
