"""The one optimizer of all training stages: clipped AdamW under a schedule."""

from __future__ import annotations

import typing

from ml_collections import ConfigDict

from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    import optax

SCHEDULES = ("constant", "warmup_cosine")


def default_config() -> ConfigDict:
    """Every parameter of the optimizer; a stage puts its own beside them."""
    config = ConfigDict()
    config.learning_rate = 1e-3  # the peak of the schedule
    config.schedule = "warmup_cosine"  # or "constant"; both begin with the warm-up
    config.warmup = 0.05  # fraction of the steps with a linear rise from 0
    config.final = 0.1  # warmup_cosine: the last learning rate, as a fraction of the peak
    config.beta1 = 0.9
    config.beta2 = 0.98
    config.epsilon = 1e-8
    config.weight_decay = 0.01  # decoupled; not on the scales of the norms
    config.clip_norm = 1.0  # global norm of the gradient; 0 does not clip
    return config


def check(config: ConfigDict) -> None:
    """Refuses parameters out of range.

    Raises:
        InputError: naming the parameter.
    """
    if config.schedule not in SCHEDULES:
        raise InputError(
            f"schedule: expected one of {', '.join(SCHEDULES)}, found {config.schedule!r}"
        )
    for name in ("warmup", "final"):
        if not 0 <= config[name] <= 1:
            raise InputError(f"{name}: expected a fraction from 0 to 1, found {config[name]}")
    for name in ("beta1", "beta2"):
        if not 0 <= config[name] < 1:
            raise InputError(f"{name}: expected 0 <= {name} < 1, found {config[name]}")
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
    """AdamW (Loshchilov & Hutter 2019) behind clipping by the global norm of the gradient.

    Args:
        config: as `default_config` gives it.
        num_steps: optimizer steps of the whole training, for the schedule.
    """
    import optax

    adamw = optax.adamw(
        make_schedule(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    if not config.clip_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decayed(params: typing.Any) -> typing.Any:
    """True for each array with weight decay: all but the norms' scales.

    By name, not by rank: layers are stacked, so a scale has the shape [L, D] of a matrix.
    """
    import jax

    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) != "scale", params
    )
