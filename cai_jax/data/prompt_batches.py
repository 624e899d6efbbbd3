"""Prompts to sample from during training: tokenized, checked for length, drawn without end."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from cai_jax.data.examples import Render
    from cai_jax.data.schema import Prompt
    from cai_jax.data.tokenization import TextTokenizer

ON_LONG = ("drop", "refuse")


class PromptBatch(NamedTuple):
    """Prompts to sample from."""

    tokens: Any  # int32 [B, P], padded on the left
    mask: Any  # int32 [B, P]: 1 for a token
    keys: Any  # uint32 [B, W]: the bits of each prompt's random key
    visits: Any  # uint32 [B]: how often it was drawn before


class FittedPrompts(NamedTuple):
    """Prompts that fit, and how many do not."""

    prompts: list[Prompt]
    ids: list[list[int]]  # of the text that ends where the response begins
    dropped: int


def fit_prompts(
    prompts: Sequence[Prompt],
    tokenizer: TextTokenizer,
    render: Render,
    longest: int,
    on_long: str,
) -> FittedPrompts:
    """Tokenizes prompts, and leaves out those of more than `longest` tokens.

    Args:
        prompts: to tokenize.
        tokenizer: of the model that will respond.
        render: the prompt text of a dialogue.
        longest: tokens that a prompt may have.
        on_long: "drop" or "refuse".

    Raises:
        InputError: a prompt is too long and `on_long` is "refuse", or all are.
    """
    if on_long not in ON_LONG:
        raise InputError(f"on_long: expected {' or '.join(ON_LONG)}, found {on_long!r}")
    encoded = tokenizer.encode_prompts([render(prompt.dialogue) for prompt in prompts])
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= longest]
    dropped = len(prompts) - len(kept)
    if dropped and (on_long == "refuse" or not kept):
        i = next(i for i, ids in enumerate(encoded) if len(ids) > longest)
        raise InputError(
            f"prompt {prompts[i].id}: expected at most {longest} tokens, found "
            f"{len(encoded[i])}; raise max_prompt_tokens"
        )
    return FittedPrompts([prompts[i] for i in kept], [encoded[i] for i in kept], dropped)


def drawn(
    fitted: FittedPrompts,
    bits: np.ndarray,
    rng: np.random.Generator,
    *,
    prompts: int,
    samples: int,
) -> Iterator[tuple[list[Prompt], PromptBatch]]:
    """Batches without end. All prompts come once, in some order, before one comes again.

    The rows of one prompt stand together. What is sampled from a prompt depends on its key and on
    how often it was sampled before, not on the batch that it is in.

    Args:
        fitted: what to draw from.
        bits: uint32 [n, W], the bits of the random key of each prompt.
        rng: for the order.
        prompts: in a batch.
        samples: rows for each.
    """
    count, width = len(fitted.ids), max(map(len, fitted.ids))
    tokens, mask = (np.zeros((count, width), np.int32) for _ in range(2))
    for row, of_prompt in enumerate(fitted.ids):
        tokens[row, width - len(of_prompt) :] = of_prompt
        mask[row, width - len(of_prompt) :] = 1
    stream = (
        (index, turn * samples + sample)
        for turn in itertools.count()
        for index in rng.permutation(count)
        for sample in range(samples)
    )
    while True:
        rows = list(itertools.islice(stream, prompts * samples))
        chosen = [index for index, _ in rows]
        visits = np.array([visit for _, visit in rows], np.uint32)
        yield (
            [fitted.prompts[index] for index in chosen],
            PromptBatch(tokens[chosen], mask[chosen], bits[chosen], visits),
        )
