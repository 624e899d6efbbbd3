"""Sampling completions of many prompts: the host's half."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.generation import batching
from cai_jax.generation.distribution import Filter, mode_of, uniforms
from cai_jax.generation.sampler import NO_TOKEN, decode_jit, rows_sharding, start_jit
from cai_jax.generation.settings import Completion, SamplingSettings, Stats
from cai_jax.generation.stopping import find_stop, stop_tokens
from cai_jax.models import placing

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.language_model import LanguageModel

TEXT_CHECK_STEPS = 16  # tokens between two looks for stop strings that are no single token

Keys = jax.Array | tuple[jax.Array, Iterable[int | str]]


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    keys: Keys,
    *,
    batch_size: int = 128,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> list[Completion]:
    """Samples one completion of each prompt.

    What a prompt gets depends on the model, the settings, the prompt and its key: not on the other
    prompts, their order, or the batch size.

    Args:
        model: on the devices of `mesh`.
        prompts: token ids, as `tokenizer.encode_prompt` gives them. An empty one is given the
            token that begins a text.
        settings: of all prompts; the tokenizer's own `stops` end texts besides.
        keys: one key a prompt [n], or (base key, one record id a prompt); ids are integers or
            strings, and equal ids of equal prompts give equal completions.
        batch_size: rows decoded at a time.
        names: of the prompts in error messages.
        mesh: splits the rows of a batch; None: one device.
        stats: counts are added here.
        progress: told of each batch of completions.

    Returns:
        The completions, in the order of the prompts.

    Raises:
        InputError: a prompt and max_new_tokens need more positions than the model has, a prompt
            has tokens that it does not know, or it is a preference model.
    """
    settings = dataclasses.replace(settings, stop=(*settings.stop, *model.tokenizer.stops))
    budgets = [settings.max_new_tokens] * len(prompts)
    prompts = batching.checked_prompts(model, prompts, budgets, "max_new_tokens", names)
    with batching.measured(stats) as stats:
        key_bits = _key_bits(keys, len(prompts))
        rows = batching.row_count(len(prompts), batch_size, mesh)
        sample = functools.partial(_sample_batch, model, settings, rows, mesh, stats)
        results: list[Completion | None] = [None] * len(prompts)
        for batch in batching.batches([len(prompt) for prompt in prompts], rows):
            completions = sample([prompts[index] for index in batch], key_bits[batch])
            for index, completion in zip(batch, completions):
                results[index] = completion
            if progress is not None:
                progress.advance(len(batch))
    return typing.cast(list[Completion], results)


def _key_bits(keys: Keys, count: int) -> np.ndarray:
    """[n, W] raw bits of one key a prompt."""
    if isinstance(keys, tuple):
        bits = batching.record_keys(*keys)
    else:
        bits = np.asarray(jax.random.key_data(keys))
    if len(bits) != count:
        raise ValueError(f"{count} prompts need as many keys; got {len(bits)}")
    return bits


def _sample_batch(
    model: LanguageModel,
    settings: SamplingSettings,
    rows: int,
    mesh: Mesh | None,
    stats: Stats,
    prompts: list[list[int]],
    key_bits: np.ndarray,
) -> list[Completion]:
    """Completions of at most `rows` prompts, as one batch of that many rows."""
    tokenizer, config = model.tokenizer, model.config
    count, budget = len(prompts), settings.max_new_tokens
    room = batching.bucket(budget)
    tokens, mask = batching.pad_left(prompts, rows)
    done = np.arange(rows) >= count
    key_bits = np.concatenate([key_bits, np.repeat(key_bits[-1:], rows - count, axis=0)])

    place = functools.partial(placing.place, sharding=rows_sharding(mesh))
    stops, stops_are_tokens = stop_tokens(settings.stop, tokenizer)
    # An id that no token has keeps the array's shape when there is nothing to stop at.
    stop_ids = jnp.asarray([tokenizer.eos_id if tokenizer.eos_id is not None else NO_TOKEN, *stops])
    filters = Filter(
        jnp.float32(settings.temperature),
        jnp.int32(min(settings.top_k or config.vocab_size, config.vocab_size)),
        jnp.float32(settings.top_p),
    )
    mode = mode_of(settings.temperature, settings.top_k, settings.top_p)
    # Nothing is drawn in greedy mode, but the loop still reads a number a step.
    no_draw = np.zeros((rows, 1), np.float32)
    uniform = place(no_draw) if mode == "greedy" else _uniforms(place(key_bits), room)
    state = start_jit(model.params, config, place(tokens), place(mask), place(done), room, mesh)
    limit = budget if stops_are_tokens else 0
    while True:
        limit = min(limit + TEXT_CHECK_STEPS, budget)
        state = decode_jit(
            model.params, config, state, uniform, filters, stop_ids, limit, mode, mesh
        )
        if limit == budget or bool(jnp.all(state.done)):
            break
        done = np.array(placing.fetch(state.done))
        for row, ids in enumerate(_generated(state.tokens)):
            if not done[row]:
                done[row] = find_stop(ids, settings.stop, tokenizer.decode) is not None
        state = state._replace(done=place(done))

    generated = _generated(state.tokens)[:count]
    logprobs, tempered = placing.fetch((state.logprobs, state.tempered))
    completions = [
        _completion(ids, logprobs[row], tempered[row], settings.stop, tokenizer)
        for row, ids in enumerate(generated)
    ]
    stats.prompt_tokens += sum(len(prompt) for prompt in prompts)
    stats.forwarded_prompt_tokens += sum(len(prompt) for prompt in prompts)
    stats.generated_tokens += sum(len(completion.token_ids) for completion in completions)
    stats.decode_steps += int(state.step)
    stats.slots = max(stats.slots, rows)
    return completions


@functools.partial(jax.jit, static_argnames="count")
def _uniforms(key_bits: jax.Array, count: int) -> jax.Array:
    return uniforms(jax.random.wrap_key_data(key_bits), count)


def _generated(tokens: jax.Array) -> list[list[int]]:
    """The tokens of each row, without what follows its end."""
    return [[token for token in row if token != NO_TOKEN] for row in placing.fetch(tokens).tolist()]


def _completion(
    ids: list[int],
    logprobs: np.ndarray,
    tempered: np.ndarray,
    stops: Sequence[str],
    tokenizer: typing.Any,
) -> Completion:
    ended = bool(ids) and ids[-1] == tokenizer.eos_id
    spoken = ids[:-1] if ended else ids
    stop = find_stop(spoken, stops, tokenizer.decode)
    if stop is None:
        text = tokenizer.decode(spoken)
    else:
        text, kept = stop
        ids = ids[:kept]
    return Completion(
        text=text,
        token_ids=ids,
        logprobs=logprobs[: len(ids)].tolist(),
        tempered_logprobs=tempered[: len(ids)].tolist(),
        finish_reason="stop" if ended or stop is not None else "length",
    )
