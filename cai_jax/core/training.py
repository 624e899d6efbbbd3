"""What a training step carries from one batch to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
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

    def create(params):
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    shardings = sharding.tree_shardings(jax.eval_shape(create, params), mesh)
    params = jax.device_put(params, shardings.params)
    return jax.jit(create, out_shardings=shardings)(params), shardings


def apply_gradients(
    state: TrainState, gradients: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state after one update."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1)
