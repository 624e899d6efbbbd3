"""Scores of whole texts by a preference model, and what it must share with a policy."""

from __future__ import annotations

import functools
import typing
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.errors import InputError
from cai_jax.generation import batching
from cai_jax.generation.placing import rows_sharding
from cai_jax.models import placing, transformer

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel


def preference_scores(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The preference model's score of each text, read at its last token.

    Args:
        model: a preference model, on the devices of `mesh`.
        texts: token ids, none empty; the last is the end-of-text token if the model was trained so.
        batch_size: rows computed at a time; it does not change the scores.
        mesh: splits the rows of a batch; None: one device.

    Returns:
        [n] float32, in the order of `texts`.

    Raises:
        InputError: the model has no score head, or a text is empty, has tokens that the model does
            not know, or needs more positions than it has.
    """
    if "score_head" not in model.params:
        raise InputError("expected a preference model, found a language model without a score head")
    for number, text in enumerate(texts):
        if not len(text):
            raise InputError(f"text {number}: expected at least one token to score, found none")
        batching.check_tokens(text, model.config.vocab_size, f"text {number}")
        batching.check_room(len(text), 0, model.config.max_positions, f"text {number}", "tokens")
    rows = batching.row_count(len(texts), batch_size, mesh)
    found = np.zeros(len(texts), np.float32)
    place = functools.partial(placing.place, sharding=rows_sharding(mesh))
    for batch in batching.batches([len(text) for text in texts], rows):
        tokens, mask = batching.pad_left([texts[index] for index in batch], rows)
        scores = _scores_jit(model.params, model.config, place(tokens), place(mask))
        found[batch] = placing.fetch(scores)[: len(batch)]
    return found


@functools.partial(jax.jit, static_argnames="config")
def _scores_jit(params, config: ModelConfig, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores [B] at the last column of left-padded tokens [B, T]."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    return transformer.scores(params, hidden[:, -1])


def end_scores(
    params: transformer.Params,
    config: ModelConfig,
    tokens: jax.Array,
    mask: jax.Array,
    ends: jax.Array,
    eos_id: int,
    length: int,
) -> jax.Array:
    """Scores [B] of texts [B, T] whose end token is put at `ends` [B]; pure, for a larger program.

    What stands at an end, or follows it, is not part of the text.

    Args:
        params: of the preference model.
        config: its shape.
        tokens: ids, padded on the left.
        mask: [B, T] 1 for a token.
        ends: columns, T - length to T.
        eos_id: the end token.
        length: R, the last columns, which have the ends.
    """
    columns, ends = jnp.arange(tokens.shape[1] + 1), ends[:, None]
    tokens, mask = (jnp.pad(x, ((0, 0), (0, 1))) for x in (tokens, mask))
    tokens = jnp.where(columns == ends, eos_id, tokens)
    mask = jnp.where(columns == ends, 1, jnp.where(columns < ends, mask, 0))
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(
        params, config, tokens, positions=positions, segments=mask, last=length + 1
    )
    before = tokens.shape[1] - hidden.shape[1]
    last = jnp.take_along_axis(hidden, ends[..., None] - before, axis=1)[:, 0]
    return transformer.scores(params, last)


def check_models(
    policy: LanguageModel,
    preference: LanguageModel,
    ids: Sequence[Sequence[int]],
    room: int,
    role: str = "preference_model",
) -> None:
    """Refuses models that do not hold the texts, or whose tokens are not the same.

    Args:
        policy: writes the responses.
        preference: scores them.
        ids: of the prompts.
        room: tokens that follow a prompt, at most.
        role: what the step calls the model that scores.

    Raises:
        InputError: in one line, what does not fit.
    """
    if "score_head" in policy.params:
        raise InputError("model: expected a language model, found a preference model")
    if "score_head" not in preference.params:
        raise InputError(f"{role}: expected a score head, found a language model")
    texts = [policy.tokenizer.decode(of_prompt) for of_prompt in ids[:100]]
    tokenizers = (policy.tokenizer, preference.tokenizer)
    seen = [(t.vocab_size, t.eos_id, t.encode_batch(texts)) for t in tokenizers]
    if seen[0] != seen[1]:
        raise InputError(
            f"{role}: expected the tokenizer of the policy, found another one; "
            "train the preference model from a model of the same family"
        )
    length = max(map(len, ids)) + room
    largest = max(policy.tokenizer.eos_id, max(map(max, ids)))
    for name, model in (("model", policy), (role, preference)):
        if length > model.config.max_positions:
            raise InputError(
                f"{name}: expected room for {length} tokens (prompt, max_new_tokens and end), "
                f"found {model.config.max_positions} positions; lower max_prompt_tokens"
            )
        if largest >= model.config.vocab_size:
            raise InputError(
                f"{name}: its tokenizer gives id {largest}, but its vocabulary has only "
                f"{model.config.vocab_size} entries; the folder's files do not belong together"
            )


def pair_scores(params: Any, config: ModelConfig, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Scores of responses A and B, [B] each, of a batch on devices; differentiable.

    Args:
        params: of a preference model.
        config: of the model.
        batch: arrays as `data/comparisons.py` has them: a PairBatch, whose texts stand each in a
            row of its own, padded on the left, or a SharedBatch, whose responses share a row and
            the one copy of their prompt there.
    """
    if hasattr(batch, "ends"):
        hidden, _ = transformer.forward(
            params,
            config,
            batch.tokens,
            positions=batch.positions,
            segments=batch.segments,
            parents=batch.parents,
        )
        last = jnp.take_along_axis(hidden, batch.ends[..., None], axis=1)  # [B, 2, D]
        scores = transformer.scores(params, last)
        return scores[:, 0], scores[:, 1]
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.mask))  # [2B, T]
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    scores = transformer.scores(params, hidden[:, -1]).reshape(-1, 2)
    return scores[:, 0], scores[:, 1]
