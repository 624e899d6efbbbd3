"""What becomes of a policy's words along RL: boilerplate, repetition, diversity, length.

Over-training shows as phrases that come to stand in every response ("you are valid, valued, and
cared for", section 4.3 of the paper) while the preference model's score still rises. A policy
begins as its reference, so its first responses are the reference's, and later ones are held
against them: no text is sampled for this alone.

A phrase is a run of words. It counts once a response, and not where it repeats the prompt.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cai_jax.text.duplicates import normalise

WORDS = 4
"""Words of a phrase."""
LEAST_SHARE = 0.1
"""The share of responses from which on a phrase can be boilerplate."""
LEAST_Z = 4.0
"""Standard errors by which its share must have grown: thousands of phrases are looked at."""


class Said(NamedTuple):
    """What some responses have said."""

    phrases: Mapping[str, int]  # responses that hold the phrase
    responses: tuple[frozenset[str], ...]  # the phrases of each
    prompts: int  # distinct ones: responses to one prompt are alike
    words: float  # of a response, in the mean
    distinct: float  # bigrams that differ, of all bigrams of all responses
    repetition: float  # phrases of a response that stood in it before, of all; the mean


class Grown(NamedTuple):
    """A phrase whose share of the responses has grown beyond chance."""

    phrase: str
    first: float  # share of the first responses
    last: float  # and of these
    log_ratio: float  # nats, smoothed: of the phrase's odds of standing in a response, about


def said(responses: Sequence[str], prompts: Sequence[str]) -> Said:
    """Counts the phrases of responses; `prompts` has what each of them answers."""
    held, bigrams, repeated = [], Counter[str](), []
    lengths = []
    for response, prompt in zip(responses, prompts, strict=True):
        words = normalise(response).split()
        phrases = _runs(words, WORDS)
        held.append(frozenset(phrases) - frozenset(_runs(normalise(prompt).split(), WORDS)))
        bigrams.update(_runs(words, 2))
        repeated.append(1 - len(set(phrases)) / len(phrases) if phrases else 0.0)
        lengths.append(len(words))
    return Said(
        Counter(phrase for phrases in held for phrase in phrases),
        tuple(held),
        len(set(prompts)),
        math.fsum(lengths) / len(lengths),
        len(bigrams) / max(bigrams.total(), 1),
        math.fsum(repeated) / len(repeated),
    )


def grown(first: Said, last: Said) -> list[Grown]:
    """The phrases of `last` that have grown since `first`, the most common before others.

    The log-ratio adds half a response to each count, so that a new phrase has one too. A share's
    growth is held against chance in arcsines of its root, whose variance 1 / (4 n) does not depend
    on it; n counts prompts.
    """
    num_first, num_last = len(first.responses), len(last.responses)
    error = math.sqrt(0.25 / first.prompts + 0.25 / last.prompts)
    found = []
    for phrase, count in last.phrases.items():
        if count < LEAST_SHARE * num_last:
            continue
        before, after = first.phrases.get(phrase, 0) / num_first, count / num_last
        if math.asin(math.sqrt(after)) - math.asin(math.sqrt(before)) < LEAST_Z * error:
            continue
        ratio = (count + 0.5) / (num_last + 1) * (num_first + 1) / (before * num_first + 0.5)
        found.append(Grown(phrase, before, after, math.log(ratio)))
    return sorted(found, key=lambda one: (-one.last, one.phrase))


def measures(first: Said, last: Said) -> dict[str, float]:
    """What to write down of the responses of an iteration.

    Returns:
        boilerplate: share of responses that hold a phrase which has grown beyond chance;
        phrase_growth: the log-ratio of the phrase that grew most (nats), 0 if none has;
        length_drift: mean words over those of the first responses, less 1;
        distinct_2: bigrams that differ, over all; repetition: see `Said`.
    """
    new = grown(first, last)
    names = frozenset(one.phrase for one in new)
    return {
        "boilerplate": sum(not names.isdisjoint(of) for of in last.responses) / len(last.responses),
        "phrase_growth": max((one.log_ratio for one in new), default=0.0),
        "length_drift": last.words / max(first.words, 1e-9) - 1,
        "distinct_2": last.distinct,
        "repetition": last.repetition,
    }


def joined(phrases: Sequence[Grown]) -> list[Grown]:
    """Phrases that overlap in all words but one as the longer ones they are parts of.

    A longer phrase's numbers are those of its rarest part.
    """
    by_head: dict[str, list[Grown]] = {}
    for one in phrases:
        by_head.setdefault(one.phrase.rpartition(" ")[0], []).append(one)
    tails = {one.phrase.partition(" ")[2] for one in phrases}
    starts = [one for one in phrases if one.phrase.rpartition(" ")[0] not in tails]
    longer, used = [], set[str]()
    for start in [*starts, *phrases]:  # the latter for phrases that go round in a circle
        if start.phrase in used:
            continue
        words, last, rarest = start.phrase, start, start
        used.add(start.phrase)
        while following := by_head.get(last.phrase.partition(" ")[2]):
            last = following[0]
            if last.phrase in used:
                break
            used.add(last.phrase)
            words += " " + last.phrase.rpartition(" ")[2]
            rarest = min(rarest, last, key=lambda one: one.last)
        longer.append(rarest._replace(phrase=words))
    return sorted(longer, key=lambda one: (-one.last, one.phrase))


def spread(first: Said, last: Said) -> list[dict[str, str | float]]:
    """The phrases that have grown, joined, as objects for a file."""
    return [one._asdict() for one in joined(grown(first, last))]


def _runs(words: Sequence[str], n: int) -> list[str]:
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
