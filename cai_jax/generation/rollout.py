"""Sampling inside another compiled program: the rollouts of PPO."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.generation.distribution import Filter, mode_of, uniforms
from cai_jax.generation.sampler import NO_TOKEN, decode, start
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params


class Rollouts(NamedTuple):
    """Responses [B, R]; what follows a row's end is masked, and holds the padding token."""

    tokens: jax.Array  # [B, R] int32
    logprobs: jax.Array  # [B, R] float32, under the policy at temperature 1; 0 where masked
    mask: jax.Array  # [B, R] bool: True for generated tokens, the one that ends the row included


def rollout(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    stop_ids: Sequence[int] = (),
    pad_id: int = 0,
) -> Rollouts:
    """Samples one response of each prompt; pure, so that a jitted update may call it.

    A response depends on its prompt and key alone, as in `generate`: the same prompt and key give
    the same tokens there.

    Args:
        params: of the policy.
        config: its shape.
        tokens: [B, P] prompts, padded on the left; the last column is a token in every row.
        mask: [B, P] 1 or True for a token, 0 for padding.
        keys: [B] one key a row; fold the iteration into them.
        max_new_tokens: R; where it and P repeat, so does the compiled program.
        temperature: of sampling. The log-probabilities are those at temperature 1, so any other
            value makes them another distribution's than the one sampled from.
        stop_ids: tokens that end a response; they are kept.
        pad_id: fills the rows after their end.
    """
    batch = tokens.shape[0]
    state = start(params, config, tokens, mask, jnp.zeros((batch,), bool), max_new_tokens)
    state = decode(
        params,
        config,
        state,
        uniforms(keys, max_new_tokens),
        Filter(jnp.float32(temperature), jnp.int32(config.vocab_size), jnp.float32(1.0)),
        jnp.asarray(stop_ids or (NO_TOKEN,), jnp.int32),
        jnp.int32(max_new_tokens),
        mode_of(temperature, top_k=0, top_p=1.0),
    )
    generated = state.tokens != NO_TOKEN
    return Rollouts(jnp.where(generated, state.tokens, pad_id), state.logprobs, generated)
