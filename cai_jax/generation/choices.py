"""Multiple choices, answered at once or after a chain of thought (paper section 4.1)."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cai_jax.generation import generate, score
from cai_jax.generation.settings import SamplingSettings

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.generation.batching import Progress
    from cai_jax.models.language_model import LanguageModel


class Thinking(NamedTuple):
    """How reasoning is sampled, and what the prompt is with it.

    `keys` are as `generate` takes them; `cut` takes from a completion what counts as reasoning;
    `lay_out` gives what stands in front of the answer (a text, or turns of a chat), from a
    prompt's number and its reasoning.
    """

    settings: SamplingSettings
    keys: generate.Keys
    cut: Callable[[str], str]
    lay_out: Callable[[int, str], Any]


class Answer(NamedTuple):
    """What came of a prompt.

    `logps` are the log-probabilities [k] (nats) of the choices; None where the prompt with its
    reasoning is longer than the model's positions hold.
    """

    logps: np.ndarray | None
    reasoning: str | None = None
    num_tokens: int = 0  # sampled, and read in front of the answer
    truncated: bool = False  # the reasoning ended by its maximum of tokens


def answer_choices(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    thinking: Thinking | None,
    *,
    batch_size: int,
    names: Sequence[str],
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Log-probabilities of the choices after each prompt, or after reasoning that is sampled first.

    Args:
        model: on the devices of `mesh`.
        prompts: token ids.
        choices: token ids of the answers.
        thinking: None: the answer follows at once.
        batch_size: rows computed at a time.
        names: of the prompts in error messages.
        mesh: splits the rows of a batch; None: one device.
        progress: told of each batch of reasonings, and of answers.
    """

    def choose(there: Sequence[int], texts: Sequence[Sequence[int]]) -> np.ndarray:
        return score.choice_logprobs(
            model,
            texts,
            choices,
            batch_size=batch_size,
            names=[names[i] for i in there],
            mesh=mesh,
            progress=progress,
        )

    if thinking is None:
        rows = choose(range(len(prompts)), prompts)
        return [Answer(row, None, len(prompt)) for row, prompt in zip(rows, prompts)]
    completions = generate.generate(
        model,
        prompts,
        thinking.settings,
        thinking.keys,
        batch_size=batch_size,
        names=names,
        mesh=mesh,
        progress=progress,
    )
    answers = [
        Answer(None, thinking.cut(c.text), len(c.token_ids), c.finish_reason == "length")
        for c in completions
    ]
    texts = [thinking.lay_out(i, answer.reasoning or "") for i, answer in enumerate(answers)]
    encoded = model.tokenizer.encode_prompts(texts)
    # Text that is encoded again may take more tokens than were sampled.
    most = model.config.max_positions - max(map(len, choices))
    there = [i for i, ids in enumerate(encoded) if len(ids) <= most]
    for i, row in zip(there, choose(there, [encoded[i] for i in there])):
        read = answers[i].num_tokens + len(encoded[i])
        answers[i] = answers[i]._replace(logps=row, num_tokens=read)
    return answers
