"""Sampling completions of many prompts, and sessions that ask for one after the other."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cai_jax.generation import batching, engine
from cai_jax.generation.engine import SMALLEST_SPAN, Request, Session
from cai_jax.generation.seating import in_order
from cai_jax.generation.settings import Completion, SamplingSettings, Stats
from cai_jax.generation.sizing import plan_slots

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.language_model import LanguageModel

Keys = jax.Array | tuple[jax.Array, Iterable[int | str]]


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings | Sequence[SamplingSettings],
    keys: Keys,
    *,
    batch_size: int = 128,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    memory: int | None = None,
    eight_bits: bool = False,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> list[Completion]:
    """Samples one completion of each prompt.

    What a prompt gets depends on the model, its settings, the prompt and its key: not on the other
    prompts, their order, or the batch size. A prefix that prompts share is computed once.

    Args:
        model: on the devices of `mesh`.
        prompts: token ids, as `tokenizer.encode_prompt` gives them. An empty one is given the
            token that begins a text.
        settings: of all prompts, or one of each; the tokenizer's own `stops` end texts besides.
        keys: one key a prompt [n], or (base key, one record id a prompt); ids are integers or
            strings, and equal ids of equal prompts give equal completions.
        batch_size: slots: completions decoded at a time. A slot whose completion has ended takes
            the next prompt.
        names: of the prompts in error messages.
        mesh: splits the slots; None: one device.
        memory: bytes of keys and values at most, for which there may be fewer slots; None: as many
            as batch_size takes.
        eight_bits: keep keys and values of earlier chunks in 8 bits: half the memory of bfloat16,
            and other rounding.
        stats: counts are added here.
        progress: told what will be allocated, before it is, and of completions as they end.

    Returns:
        The completions, in the order of the prompts.

    Raises:
        InputError: a prompt and max_new_tokens need more positions than the model has, a prompt
            has tokens that it does not know, it is a preference model, or `memory` holds no slots.
    """
    each = [settings] * len(prompts) if isinstance(settings, SamplingSettings) else settings
    ends = model.tokenizer.stops
    each = [dataclasses.replace(one, stop=(*one.stop, *ends)) for one in each]
    budgets = [one.max_new_tokens for one in each]
    prompts = batching.checked_prompts(model, prompts, budgets, "max_new_tokens", names)
    results: list[Completion | None] = [None] * len(prompts)
    if not prompts:
        return []
    with batching.measured(stats) as stats:
        bits = key_bits(keys, len(prompts))
        requests = [Request(*of_one) for of_one in zip(prompts, each, bits, strict=True)]
        order = in_order([prompt[:-1] for prompt in prompts])
        longest = max(len(prompt) + budget for prompt, budget in zip(prompts, budgets))
        plan = plan_slots(
            model.config,
            len(prompts),
            batch_size,
            batching.bucket(longest, SMALLEST_SPAN),
            memory,
            mesh,
            eight_bits,
        )
        if progress is not None:
            progress.say(str(plan))
        sessions = (once(requests[number]) for number in order)
        for place, completion in engine.serve(model, sessions, plan, mesh, stats, progress):
            results[order[place]] = completion
    return typing.cast(list[Completion], results)


class Ask(NamedTuple):
    """A completion that a conversation wants next."""

    prompt: Sequence[int]
    settings: SamplingSettings
    key_bits: np.ndarray  # [W] uint32, a row of `key_bits`
    name: str  # of the record, in error messages


Conversation = Generator[Ask, Completion, Any]


def converse(
    model: LanguageModel,
    conversations: Iterable[Conversation],
    count: int,
    *,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    memory: int | None = None,
    eight_bits: bool = False,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> list[Any]:
    """Holds conversations, each of which asks for one completion after the other.

    A conversation is a generator that yields what it asks and is sent the completion; it keeps its
    slot, so that a prompt that begins as the one before, with what was written, goes on from there.
    Each completion is the one that `generate` gives for the same prompt, settings and key.

    Args:
        model: on the devices of `mesh`.
        conversations: begun in their order, as slots become free.
        count: how many there are.
        batch_size: slots.
        mesh: as in `generate`, like all that follow.
        memory: bytes of keys and values at most.
        eight_bits: keep keys and values in 8 bits.
        stats: counts are added here.
        progress: as in `generate`.

    Returns:
        What the conversations returned, in their order.

    Raises:
        InputError: as `generate`.
    """
    results: list[Any] = [None] * count
    if not count:
        return results
    with batching.measured(stats) as stats:
        span = batching.bucket(model.config.max_positions, SMALLEST_SPAN)
        plan = plan_slots(model.config, count, batch_size, span, memory, mesh, eight_bits, True)
        if progress is not None:
            progress.say(str(plan))
        sessions = (_session(model, conversation) for conversation in conversations)
        for number, result in engine.serve(model, sessions, plan, mesh, stats, progress):
            results[number] = result
    return results


def _session(model: LanguageModel, conversation: Conversation) -> Session:
    """A conversation with its prompts checked, and the ends of texts that are the tokenizer's."""
    completion = None
    while True:
        try:
            ask = next(conversation) if completion is None else conversation.send(completion)
        except StopIteration as over:
            return over.value
        settings = dataclasses.replace(
            ask.settings, stop=(*ask.settings.stop, *model.tokenizer.stops)
        )
        [prompt] = batching.checked_prompts(
            model,
            [ask.prompt],
            [settings.max_new_tokens],
            "max_new_tokens",
            [f"prompt {ask.name}"],
        )
        completion = yield Request(prompt, settings, ask.key_bits)


def once(request: Request) -> Session:
    """The session of one request; it returns the completion."""
    return (yield request)


def key_bits(keys: Keys, count: int) -> np.ndarray:
    """[n, W] raw bits of one key a prompt."""
    if isinstance(keys, tuple):
        bits = batching.record_keys(*keys)
    else:
        bits = np.asarray(jax.random.key_data(keys))
    if len(bits) != count:
        raise ValueError(f"{count} prompts need as many keys; got {len(bits)}")
    return bits
