"""What a training step carries from one batch to the next."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from cai_jax.core import sharding


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


def check_finite(
    fetched: Sequence[Mapping[str, Any]],
    last: int,
    loss: str,
    record_ids: Callable[[int], Sequence[str]],
    where: str,
) -> None:
    """Stops a training whose numbers are no numbers any more.

    Args:
        fetched: metrics of the last updates, on the host, each with "gradient_norm".
        last: the number of the last of them, from 1.
        loss: the name of the loss among the metrics.
        record_ids: of the batch of fetched[i], from i.
        where: the step and the model that it started from, which is the last good one.

    Raises:
        FloatingPointError: naming all that and the first bad update, with up to eight records.
    """
    for i, metrics in enumerate(fetched):
        if all(math.isfinite(value) for value in metrics.values()):
            continue
        ids = record_ids(i)
        raise FloatingPointError(
            f"{where}: update {last - len(fetched) + i + 1}: loss {float(metrics[loss])}, gradient "
            f"norm {float(metrics['gradient_norm'])}; nothing was saved; lower the learning rate "
            f"or look at records {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}"
        )
