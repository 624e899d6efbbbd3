"""Sampling inside another compiled program: the rollouts of PPO.

Axes: B responses, P prompt positions (padded on the left), R response positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.generation.distribution import Filter, mode_of
from cai_jax.generation.preference import check_models, end_scores
from cai_jax.generation.slots import NO_TOKEN, Slots, decode, prefill
from cai_jax.models import transformer
from cai_jax.models.cache import Past
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
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
    batch, width = tokens.shape
    counts = jnp.sum(mask.astype(jnp.int32), axis=1)
    # A slot has its text from column 0 on.
    columns = jnp.minimum(jnp.arange(width - 1) + (width - counts)[:, None], width - 1)
    cache = prefill(params, config, jnp.take_along_axis(tokens, columns, axis=1), counts - 1)
    zeros = jnp.zeros((batch,), jnp.int32)
    slots = Slots(
        token=tokens[:, -1].astype(jnp.int32),
        position=counts - 1,
        generated=zeros,
        done=zeros != 0,
        budget=zeros + max_new_tokens,
        keys=jax.random.key_data(keys),
        filters=Filter(jnp.float32(temperature), jnp.int32(config.vocab_size), jnp.float32(1.0)),
        stop_ids=jnp.broadcast_to(
            jnp.asarray(stop_ids or (NO_TOKEN,), jnp.int32), (batch, max(len(stop_ids), 1))
        ),
    )
    _, chunk = decode(
        params,
        config,
        Past(cache.keys, cache.values, None),
        slots,
        limit=jnp.int32(max_new_tokens),
        until=jnp.int32(batch),
        mode=mode_of(temperature, top_k=0, top_p=1.0),
        steps=max_new_tokens,
    )
    generated = chunk.tokens != NO_TOKEN
    return Rollouts(jnp.where(generated, chunk.tokens, pad_id), chunk.logprobs, generated)


def make_rollout(
    evaluate: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    policy_config: ModelConfig,
    preference_config: ModelConfig,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    evaluated: bool,
    bootstrap: bool,
) -> Callable[[Any, Params, Params, Any], dict[str, jax.Array]]:
    """The pure program respond(params, reference, preference, prompts) -> experience.

    `params` are a dict with the policy's under "policy"; `reference` and `preference` are those of
    a language model and of a preference model; `prompts` have tokens, mask, keys (bits) and visits,
    as `data.prompt_batches.PromptBatch`. The experience has the fields of
    `algorithms.ppo.Experience`; a row of it depends on its prompt alone.

    Args:
        evaluate: (params, tokens [B, P + R], mask) -> log-probabilities at `temperature` and values
            [B, R] of the last R tokens.
        policy_config: the policy's shape.
        preference_config: the preference model's.
        max_new_tokens: R.
        temperature: of sampling.
        eos_id: ends a response, and is where a text is scored.
        evaluated: whether the policy's log-probabilities and values are wanted; else they are 0.
        bootstrap: whether the values after the last tokens are wanted; else they are 0.
    """

    def respond(
        params: Any, reference: Params, preference: Params, prompts: Any
    ) -> dict[str, jax.Array]:
        row_keys = jax.vmap(jax.random.fold_in)(
            jax.random.wrap_key_data(prompts.keys), prompts.visits
        )
        sampled = rollout(
            params["policy"],
            policy_config,
            prompts.tokens,
            prompts.mask,
            row_keys,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_ids=(eos_id,),
        )
        tokens = jnp.concatenate([prompts.tokens, sampled.tokens], axis=1)
        mask = jnp.concatenate([prompts.mask, sampled.mask.astype(jnp.int32)], axis=1)
        # Of both by the same program, not of the policy by the sampler: before the first update
        # their difference is 0, not rounding.
        ref_logprobs, _ = evaluate({**params, "policy": reference}, tokens, mask)
        logprobs = values = jnp.zeros_like(ref_logprobs)
        if evaluated:
            logprobs, values = evaluate(params, tokens, mask)
        last_values = jnp.zeros_like(ref_logprobs[:, 0])
        if bootstrap:
            # One place more, whose token is not read: a value stands before its token.
            longer = (jnp.pad(x, ((0, 0), (0, 1)), constant_values=1) for x in (tokens, mask))
            last_values = evaluate(params, *longer)[1][:, -1]
        ends = sampled.mask & (sampled.tokens == eos_id)
        columns = prompts.mask.shape[1] + jnp.sum(sampled.mask & ~ends, axis=1)
        return {
            "tokens": tokens,
            "mask": mask,
            "response": sampled.mask,
            "logprobs": logprobs,
            "ref_logprobs": ref_logprobs,
            "values": values,
            "last_values": last_values,
            "scores": end_scores(
                preference, preference_config, tokens, mask, columns, eos_id, max_new_tokens
            ),
            "ended": jnp.any(ends, axis=1),
        }

    return respond


def make_judge(
    judge: LanguageModel, policy: LanguageModel, ids: Sequence[Sequence[int]], room: int
) -> Callable[[Any], jax.Array]:
    """A compiled program from an experience to the scores [B] of another preference model.

    Args:
        judge: on the devices of the experience.
        policy: whose responses it reads.
        ids: of the prompts.
        room: tokens that follow a prompt, at most.

    Raises:
        InputError: as `check_models`.
    """
    check_models(policy, judge, ids, room, "judge")
    eos_id = policy.tokenizer.eos_id

    @jax.jit
    def scores(params: Params, experience: Any) -> jax.Array:
        tokens, response = experience.tokens, experience.response
        ends = tokens.shape[1] - response.shape[1] + response.sum(axis=1) - experience.ended
        return end_scores(
            params, judge.config, tokens, experience.mask, ends, eos_id, response.shape[1]
        )

    return functools.partial(scores, judge.params)


def make_evaluate(
    token_logprobs: Callable[..., jax.Array],
    policy_config: ModelConfig,
    value_config: ModelConfig | None,
    length: int,
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The pure function (params, tokens [B, T], mask) -> log-probabilities and values [B, R].

    They are of the last R tokens, the values before these. `params` have the policy's under
    "policy", and under "value" those of a preference model, a score head alone, or nothing, for
    values of 0. A head reads the policy's hidden states and does not shape them: in a small model
    the errors of the first values, far larger than any advantage, would undo what it can say.

    Args:
        token_logprobs: (hidden [B, R, D], unembedding [D, V], targets [B, R], soft_cap=) -> [B, R].
        policy_config: the policy's shape.
        value_config: of a value model of its own; None: a head.
        length: R.
    """

    def evaluate(params: Any, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = response_states(params["policy"], policy_config, tokens, mask, length)
        logprobs = token_logprobs(
            hidden,
            transformer.unembedding(params["policy"], policy_config),
            tokens[:, -length:],
            soft_cap=policy_config.logits_soft_cap,
        )
        if "value" not in params:
            return logprobs, jnp.zeros_like(logprobs)
        if value_config is None:
            before = jax.lax.stop_gradient(hidden)
        else:
            before = response_states(params["value"], value_config, tokens, mask, length)
        return logprobs, transformer.scores(params["value"], before)

    return evaluate


def response_states(
    params: Params, config: ModelConfig, tokens: jax.Array, mask: jax.Array, length: int
) -> jax.Array:
    """Hidden states [B, length, D] before each of the last `length` tokens of [B, T]."""
    # The last token, whose state nobody reads, comes along: rows of P + R tokens are cut evenly.
    hidden, _ = transformer.forward(
        params,
        config,
        tokens,
        positions=jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0),
        segments=mask,
        last=length + 1,
    )
    return hidden[:, :-1]
