"""What a policy said during training, from arrays to records."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.data.schema import Prompt, Rollout, json_lines, parse
from cai_jax.data.tokenization import TextTokenizer


def to_rollouts(
    experience: Any, iteration: int, prompts: Sequence[Prompt], tokenizer: TextTokenizer
) -> list[Rollout]:
    """The responses of an iteration; a response's text is without its end token.

    Args:
        experience: as `algorithms.ppo.Experience`, on the host.
        iteration: from 1.
        prompts: of its rows.
        tokenizer: of the policy.
    """
    response_length = experience.response.shape[1]
    records = []
    for row, prompt in enumerate(prompts):
        present = experience.response[row]
        ids = experience.tokens[row, -response_length:][present].tolist()
        kl = (experience.logprobs[row] - experience.ref_logprobs[row])[present].sum()
        ended = bool(experience.ended[row])
        records.append(
            Rollout(
                id=prompt.id,
                iteration=iteration,
                dialogue=prompt.dialogue,
                response=tokenizer.decode(ids[:-1] if ended else ids).strip(),
                score=round(float(experience.scores[row]), 5),
                kl=round(float(kl), 5),
                finish_reason="stop" if ended else "length",
            )
        )
    return records


def texts(records: Sequence[Rollout]) -> tuple[list[str], list[str]]:
    """The responses, and the last turns that they answer."""
    return [r.response for r in records], [r.dialogue[-1].text for r in records]


def first_texts(kept: Path, records: Sequence[Rollout]) -> tuple[list[str], list[str]]:
    """The texts of iteration 1: of `records`, or if they are of a later one, of the file's first.

    No more than these are read, since others may be about to be written.
    """
    if records[0].iteration > 1:
        lines = itertools.islice(json_lines(kept), len(records))
        records = [parse(Rollout, value, where) for where, value in lines]
    return texts(records)


def append(path: Path, records: Iterable[Rollout]) -> None:
    """Writes records to the end of a JSON Lines file, to be read while training goes on.

    The first host does.
    """
    if not hosts.is_first():
        return
    with open(path, "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
