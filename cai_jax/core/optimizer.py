"""The optimizer of all training stages: AdamW or Adafactor behind clipping, under a schedule."""

from __future__ import annotations

import typing
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    import jax
    import optax

SCHEDULES = ("constant", "warmup_cosine")
OPTIMIZERS = ("adamw", "adafactor")
MOMENT_DTYPES = ("float32", "bfloat16")
# A bfloat16 has 8 significant bits: what changes by less than this share of itself may stay.
BFLOAT16_STEP = 2**-8


def default_config() -> ConfigDict:
    """Every parameter of the optimizer; a stage puts its own beside them."""
    config = ConfigDict()
    config.optimizer = "adamw"  # or "adafactor": second moments by row and column, no first ones
    config.learning_rate = 1e-3  # the peak of the schedule
    config.schedule = "warmup_cosine"  # or "constant"; both begin with the warm-up
    config.warmup = 0.05  # fraction of the steps with a linear rise from 0
    config.final = 0.1  # warmup_cosine: the last learning rate, as a fraction of the peak
    config.beta1 = 0.9  # adamw alone, as beta2 and epsilon
    config.beta2 = 0.98
    config.epsilon = 1e-8
    config.moment_dtype = "float32"  # of the moments between updates; "bfloat16" halves them
    config.weight_decay = 0.01  # decoupled; not on the scales of the norms, nor on biases
    config.clip_norm = 1.0  # global norm of the gradient; 0 does not clip
    return config


def check(config: ConfigDict) -> None:
    """Refuses parameters out of range.

    Raises:
        InputError: naming the parameter.
    """
    choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "moment_dtype": MOMENT_DTYPES}
    for name, known in choices.items():
        if config[name] not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {config[name]!r}")
    for name in ("warmup", "final"):
        if not 0 <= config[name] <= 1:
            raise InputError(f"{name}: expected a fraction from 0 to 1, found {config[name]}")
    for name in ("beta1", "beta2"):
        if not 0 <= config[name] < 1:
            raise InputError(f"{name}: expected 0 <= {name} < 1, found {config[name]}")
        stays = config.moment_dtype == "bfloat16" and 1 - config[name] < BFLOAT16_STEP
        if config.optimizer == "adamw" and stays:
            raise InputError(
                f"{name}: expected at most {1 - BFLOAT16_STEP} with moment_dtype bfloat16, found "
                f"{config[name]}; a moment that falls by less than one part in 256 would not fall"
            )
    for name in ("learning_rate", "epsilon", "weight_decay", "clip_norm"):
        if config[name] < 0:
            raise InputError(f"{name}: expected 0 or more, found {config[name]}")


def make_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, 0 .. num_steps - 1."""
    import optax

    check(config)
    peak, warmup_steps = config.learning_rate, round(config.warmup * num_steps)
    if config.schedule == "warmup_cosine":
        after = optax.cosine_decay_schedule(
            peak, max(num_steps - warmup_steps, 1), alpha=config.final
        )
    else:
        after = optax.constant_schedule(peak)
    if not warmup_steps:
        return after
    # The rise begins one notch above 0: a first step at rate 0 would be a batch thrown away.
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """AdamW or Adafactor, behind clipping by the global norm of the gradient.

    AdamW is that of Loshchilov and Hutter (2019). Adafactor (Shazeer and Stern 2018) keeps the
    second moments of a matrix of 128 x 128 or more as a row and a column; its updates have a root
    mean square of at most 1 an array, the layers of a kind together, and are multiplied by the
    learning rate, not by the scale of the array besides: a head that starts at 0 would hardly move.

    Args:
        config: as `default_config` gives it.
        num_steps: optimizer steps of the whole training, for the schedule.
    """
    import optax

    schedule = make_schedule(config, num_steps)
    if config.optimizer == "adafactor":
        made = optax.chain(
            stored_as(optax.scale_by_factored_rms(), config.moment_dtype),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        made = optax.chain(
            stored_as(
                optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
                config.moment_dtype,
            ),
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    if not config.clip_norm:
        return made
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), made)


def stored_as(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """`inner` with the arrays of its state kept in `dtype` between updates, computed in float32."""
    import jax
    import jax.numpy as jnp
    import optax

    if dtype == "float32":
        return inner

    def cast(state: Any, dtype: str) -> Any:
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def init(params):
        return cast(inner.init(params), dtype)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


class AverageState(NamedTuple):
    """The averaged parameters, and of how many updates."""

    updates: jax.Array  # [] int32
    average: Any


def with_average(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """`optimizer` with an exponential moving average of the parameters in its state.

    After update t the average is sum_i decay^(t - i) params_i / sum_i decay^(t - i), i from 1 to t:
    normalised, so that the parameters before the first update have no share in it.

    Args:
        optimizer: what makes the updates; they stay as they are.
        decay: in [0, 1); 0 keeps no average.
    """
    import jax
    import jax.numpy as jnp
    import optax

    if not decay:
        return optimizer

    def init(params):
        average = jax.tree.map(jnp.zeros_like, params)
        return optimizer.init(params), AverageState(jnp.zeros((), jnp.int32), average)

    def update(updates, state, params=None):
        inner, (made, average) = state
        updates, inner = optimizer.update(updates, inner, params)
        share = (1 - decay) / (1 - decay ** (made + 1).astype(jnp.float32))
        average = jax.tree.map(
            lambda mean, new: mean + share * (new - mean),
            average,
            optax.apply_updates(params, updates),
        )
        return updates, (inner, AverageState(made + 1, average))

    return optax.GradientTransformation(init, update)


def averaged(optimizer_state: Any, params: Any) -> Any:
    """The average that `with_average` keeps, or `params` where there is none."""
    last = optimizer_state[-1] if isinstance(optimizer_state, tuple) else None
    return last.average if isinstance(last, AverageState) else params


def decayed(params: Any) -> Any:
    """True for each array with weight decay: all but the norms' scales and the biases.

    By name, not by rank: layers are stacked, so a scale has the shape [L, D] of a matrix.
    """
    import jax

    def decays(path: Any, _: Any) -> bool:
        name = str(getattr(path[-1], "key", ""))
        return name != "scale" and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
