"""Log-probabilities of given completions, without a [B, T, V] array.

A prompt that several completions share, in one record or in several, is computed once: its keys and
values are gathered into the rows of its completions. Hidden states become log-probabilities a chunk
of positions at a time.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cai_jax.generation import batching
from cai_jax.generation.sampler import fill_cache_jit, rows_sharding
from cai_jax.generation.settings import Stats
from cai_jax.models import transformer

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.cache import Cache
    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

CHUNK_LOGITS = 1 << 22  # logits held at a time: 16 MiB in float32
SMALLEST_COMPLETION = 4  # the bucket of short completions


def score(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int = 64,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> list[list[np.ndarray]]:
    """Log-probabilities of completions given their prompts, under the model at temperature 1.

    Args:
        model: on the devices of `mesh`.
        prompts: token ids; an empty one is given the token that begins a text.
        completions: of each prompt, any number of them, of any length.
        batch_size: rows computed at a time.
        names: of the prompts in error messages.
        mesh: splits the rows of a batch; None: one device.
        stats: counts are added here.
        progress: told of each batch of distinct completions.

    Returns:
        For each prompt and completion a float32 array: one log-probability (nats) a token.

    Raises:
        InputError: a prompt and a completion need more positions than the model has, or hold
            tokens that it does not know, or it is a preference model.
    """
    longest = [max((len(text) for text in texts), default=0) for texts in completions]
    prompts = batching.checked_prompts(model, prompts, longest, "tokens of completion", names)
    wanted: dict[tuple[int, ...], dict[tuple[int, ...], np.ndarray]] = {}
    for number, (prompt, texts) in enumerate(zip(prompts, completions)):
        for index, text in enumerate(texts):
            name = f"{names[number] if names else f'prompt {number}'}: completion {index}"
            batching.check_tokens(text, model.config.vocab_size, name)
        wanted.setdefault(tuple(prompt), {}).update(
            {tuple(text): np.zeros(0, np.float32) for text in texts}
        )

    with batching.measured(stats) as stats:
        distinct = list(wanted)
        rows = batching.row_count(len(distinct), batch_size, mesh)
        text_rows = batching.row_count(sum(map(len, wanted.values())), batch_size, mesh)
        for batch in batching.batches([len(prompt) for prompt in distinct], rows):
            group = {distinct[index]: wanted[distinct[index]] for index in batch}
            _score_group(model, group, rows, text_rows, mesh)
            stats.forwarded_prompt_tokens += sum(
                len(prompt) for prompt, texts in group.items() if any(texts)
            )
            if progress is not None:
                progress.advance(len(batch))
        stats.prompt_tokens += sum(
            len(prompt) * len(texts) for prompt, texts in zip(prompts, completions)
        )
        stats.slots = max(stats.slots, rows)
    return [
        [wanted[tuple(prompt)][tuple(text)] for text in texts]
        for prompt, texts in zip(prompts, completions)
    ]


def choice_logprobs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> np.ndarray:
    """Log-probabilities [n, k] (nats) of k continuations after each of n prompts.

    This is how a feedback model answers a multiple-choice question (paper, section 4.1): `choices`
    are the tokens of " (A)" and " (B)". Choices of one token each are read from one position, in
    one pass; longer ones go through `score`. See there for the other arguments.
    """
    if any(len(choice) != 1 for choice in choices):
        scored = score(
            model,
            prompts,
            [choices] * len(prompts),
            batch_size=batch_size,
            names=names,
            mesh=mesh,
            stats=stats,
            progress=progress,
        )
        sums = [[array.sum(dtype=np.float64) for array in arrays] for arrays in scored]
        return np.asarray(sums, np.float32).reshape(len(prompts), len(choices))

    prompts = batching.checked_prompts(
        model, prompts, [1] * len(prompts), "token of the choice", names
    )
    place = functools.partial(jax.device_put, device=rows_sharding(mesh))
    tokens = jnp.asarray([choice[0] for choice in choices], jnp.int32)
    result = np.zeros((len(prompts), len(choices)), np.float32)
    with batching.measured(stats) as stats:
        rows = batching.row_count(len(prompts), batch_size, mesh)
        for batch in batching.batches([len(prompt) for prompt in prompts], rows):
            padded, mask = batching.pad_left([prompts[index] for index in batch], rows)
            read = _read_choices(model.params, model.config, place(padded), place(mask), tokens)
            result[batch] = np.asarray(read)[: len(batch)]
            if progress is not None:
                progress.advance(len(batch))
        count = sum(len(prompt) for prompt in prompts)
        stats.prompt_tokens += count
        stats.forwarded_prompt_tokens += count
        stats.slots = max(stats.slots, rows)
    return result


def token_logprobs(
    params: transformer.Params, config: ModelConfig, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """The log-probability (float32) of each target [B, T] from hidden states [B, T, D].

    Works on as many positions at a time as `CHUNK_LOGITS` allows.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    count = len(flat)
    chunk = min(max(CHUNK_LOGITS // config.vocab_size, 1), count)
    padding = -count % chunk
    flat = jnp.pad(flat, ((0, padding), (0, 0))).reshape(-1, chunk, flat.shape[-1])
    wanted = jnp.pad(targets.reshape(-1), (0, padding)).reshape(-1, chunk)

    def read(block):
        logits = transformer.logits(params, config, block[0])
        chosen = jnp.take_along_axis(logits, block[1][:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return lax.map(read, (flat, wanted)).reshape(-1)[:count].reshape(targets.shape)


def _score_group(
    model: LanguageModel,
    group: dict[tuple[int, ...], dict[tuple[int, ...], np.ndarray]],
    rows: int,
    text_rows: int,
    mesh: Mesh | None,
) -> None:
    """Fills in the arrays of at most `rows` prompts, `text_rows` completions at a time."""
    place = functools.partial(jax.device_put, device=rows_sharding(mesh))
    prompts = [list(prompt) for prompt in group]
    tokens, mask = batching.pad_left(prompts, rows)
    pairs = [(row, text) for row, texts in enumerate(group.values()) for text in texts if len(text)]
    if not pairs:
        return
    # As in sampling, the prompt's last token goes with the completion: it predicts the first one.
    room = batching.bucket(max(len(text) for _, text in pairs), SMALLEST_COMPLETION)
    cache = fill_cache_jit(
        model.params, model.config, place(tokens[:, :-1]), place(mask[:, :-1]), room, mesh
    )
    for first in range(0, len(pairs), text_rows):
        some = pairs[first : first + text_rows]
        source = np.zeros(text_rows, np.int32)
        inputs, targets, valid = (np.zeros((text_rows, room), np.int32) for _ in range(3))
        for row, (prompt_row, text) in enumerate(some):
            source[row] = prompt_row
            inputs[row, : len(text)] = [prompts[prompt_row][-1], *text[:-1]]
            targets[row, : len(text)] = text
            valid[row, : len(text)] = 1
        arrays = (place(array) for array in (source, inputs, targets, valid))
        logprobs = np.asarray(_continue(model.params, model.config, cache, *arrays))
        for row, (prompt_row, text) in enumerate(some):
            group[tuple(prompts[prompt_row])][text] = logprobs[row, : len(text)]


@functools.partial(jax.jit, static_argnames="config")
def _continue(
    params: transformer.Params,
    config: ModelConfig,
    cache: Cache,
    source: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
) -> jax.Array:
    """Log-probabilities [B, C] of targets, each row continuing the prompt of cache row source."""

    def gather(arrays):  # [..., B, K, H, S] or [..., B, K, S, H]
        return jax.tree.map(lambda array: jnp.take(array, source, axis=-4), arrays)

    cache = cache._replace(
        keys=gather(cache.keys),
        values=gather(cache.values),
        valid=jnp.take(cache.valid, source, axis=0),
    )
    prompt_lengths = jnp.sum(cache.valid, axis=1, keepdims=True)
    positions = prompt_lengths + jnp.arange(inputs.shape[1])
    hidden, _ = transformer.forward(
        params, config, inputs, positions=positions, segments=valid, cache=cache
    )
    return token_logprobs(params, config, hidden, targets)


@functools.partial(jax.jit, static_argnames="config")
def _read_choices(
    params: transformer.Params,
    config: ModelConfig,
    tokens: jax.Array,
    mask: jax.Array,
    choices: jax.Array,
) -> jax.Array:
    """Log-probabilities [B, k] of the tokens `choices` [k] after prompts padded on the left."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    logits = transformer.logits(params, config, hidden[:, -1])
    return logits[:, choices] - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
