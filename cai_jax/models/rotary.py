"""Rotary positions (Su et al. 2021), of all or the first dims of a head, and their scalings.

Axes: B batch, N heads, T positions, H head dim, R the dims that are rotated.
"""

import math

import jax
import jax.numpy as jnp

from cai_jax.models.config import ModelConfig, RopeScaling

Rotation = tuple[jax.Array, jax.Array]


def rotation(positions: jax.Array, config: ModelConfig, local: bool = False) -> Rotation:
    """Cosine and sine [B, 1, T, R/2] of each position's angles, in float32.

    Args:
        positions: [B, T].
        config: the model's shape.
        local: for windowed layers with a theta of their own.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, None
    exponents = jnp.arange(0, config.rotary_dim, 2, dtype=jnp.float32) / config.rotary_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _scaled(frequencies, scaling, theta)
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if scaling is not None and scaling.attention_factor != 1:
        cosine, sine = cosine * scaling.attention_factor, sine * scaling.attention_factor
    return cosine, sine


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates the pairs (i, i + R/2) of x [B, N, T, H]; dims from R on stay as they are."""
    cosine, sine = rotation
    rotated_dims = 2 * cosine.shape[-1]
    passed = x[..., rotated_dims:]
    first, second = jnp.split(x[..., :rotated_dims].astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    whole = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
    return jnp.concatenate([whole, passed], axis=-1) if passed.shape[-1] else whole


def _scaled(frequencies: jax.Array, scaling: RopeScaling, theta: float) -> jax.Array:
    """The frequencies [R/2] slowed down: all, or those that turn seldom in the original length."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "llama3":
        turns = frequencies * scaling.original_positions / (2 * math.pi)
        low, high = scaling.low_frequency, scaling.high_frequency
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    else:  # yarn (Peng et al. 2023): a ramp over the dims, not over the turns
        dims = 2 * len(frequencies)
        first, last = (
            dims
            * math.log(scaling.original_positions / (turns * 2 * math.pi))
            / math.log(theta)
            / 2
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dims - 1)
        last += 0.001 * (first == last)
        kept = 1 - jnp.clip((jnp.arange(dims // 2) - first) / (last - first), 0.0, 1.0)
    return slow * (1 - kept) + frequencies * kept
