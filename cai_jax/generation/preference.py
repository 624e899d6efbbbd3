"""Scores of whole texts by a preference model: the host's half."""

from __future__ import annotations

import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.errors import InputError
from cai_jax.generation import batching
from cai_jax.generation.sampler import rows_sharding
from cai_jax.models import transformer

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
    place = functools.partial(jax.device_put, device=rows_sharding(mesh))
    for batch in batching.batches([len(text) for text in texts], rows):
        tokens, mask = batching.pad_left([texts[index] for index in batch], rows)
        scores = _scores_jit(model.params, model.config, place(tokens), place(mask))
        found[batch] = np.asarray(scores)[: len(batch)]
    return found


@functools.partial(jax.jit, static_argnames="config")
def _scores_jit(params, config: ModelConfig, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores [B] at the last column of left-padded tokens [B, T]."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    return transformer.scores(params, hidden[:, -1])
