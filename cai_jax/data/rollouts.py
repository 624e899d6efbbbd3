"""What a policy said during training, from arrays to records."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.data.schema import Prompt, Rollout, read_records
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
    """Of the first iteration: `records` themselves, or, of a later one, those in the file."""
    return texts(records) if records[0].iteration == 1 else ends(kept, len(records))[0]


def ends(kept: Path, count: int) -> list[tuple[list[str], list[str]]]:
    """The texts of the first and of the last `count` records of a file; all hosts read it."""
    hosts.wait(f"{kept.name} is to be read")  # the first host writes it
    records = read_records(kept, Rollout)
    hosts.wait(f"{kept.name} is read")
    return [texts(records[:count]), texts(records[-count:])]


def append(path: Path, records: Iterable[Rollout]) -> None:
    """Writes records to the end of a JSON Lines file, to be read while training goes on.

    The first host does.
    """
    if not hosts.is_first():
        return
    with open(path, "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
