"""Pairs as a feedback step reads them, and the comparisons that it makes of them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cai_jax.data import forms, readers
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.schema import Asked, Comparison, Pair, parse
from cai_jax.errors import InputError

KNOWN = "p_a"
"""The tag of a pair whose label is known from elsewhere: P(response A is better)."""


def read_pairs(
    path: Path,
    fields: Mapping[str, str] = forms.NO_FIELDS,
    bad: BadRecords | None = None,
) -> list[Pair]:
    """The pairs of a file or step folder; comparisons are pairs whose label is known, in a tag.

    Args:
        path: a step folder, a file of pairs, or whatever `readers.read_comparisons` reads.
        fields: our name -> the file's, as there.
        bad: what becomes of records that are none; None: the first is refused.

    Raises:
        InputError: naming file, line, field and what was expected.
    """
    path = path / "pairs.jsonl" if path.is_dir() else path
    found = readers.find(Path(path), functools.partial(_pair, fields=fields))
    return [pair for _, pair in (bad or BadRecords()).good(found)]


def _pair(value: Any, where: str, default_id: str, fields: Mapping[str, str]) -> Pair:
    if isinstance(value, dict) and "response_a" in value and "p_a" not in value:
        pair = parse(Pair, value, where)
    else:
        c = forms.comparison_of(value, where, default_id, fields)
        pair = Pair(c.id, c.dialogue, c.response_a, c.response_b, {**c.tags, KNOWN: c.p_a})
    known = known_label(pair)
    if known is not None and not (isinstance(known, int | float) and 0 <= known <= 1):
        raise InputError(f"{where}: {KNOWN}: expected a probability in 0..1, found {known!r}")
    return pair


def known_label(record: Pair | Comparison) -> float | None:
    """P(response A is better) as it is known from elsewhere; None where it is not."""
    return record.tags.get(KNOWN)


def answer_arrays(asked: Sequence[Sequence[Asked]]) -> tuple[np.ndarray, np.ndarray]:
    """The answers to Q questions about each of n pairs.

    Returns:
        Log-probabilities (nats) of " (A)" and " (B)", [n, Q, 2]; whether response A stood at (A),
        [n, Q].
    """
    logps = [[(one.logp_a, one.logp_b) for one in of_pair] for of_pair in asked]
    return np.array(logps), np.array([[one.a_is_first for one in of_pair] for of_pair in asked])


def judged(pair: Pair, asked: Sequence[Asked], p_a: float) -> Comparison:
    """The comparison of a pair with its label, and all that was asked about it."""
    principles = {one.principle for one in asked}
    logp_a, logp_b, a_is_first = asked[0].logp_a, asked[0].logp_b, asked[0].a_is_first
    if len(asked) > 1:
        logp_a, logp_b = _averaged(asked)
    reasonings = [one.reasoning for one in asked if one.reasoning is not None]
    return Comparison(
        pair.id,
        pair.dialogue,
        pair.response_a,
        pair.response_b,
        p_a=p_a,
        source="feedback",
        principle=asked[0].principle if len(principles) == 1 else None,
        logp_a=logp_a,
        logp_b=logp_b,
        a_is_first=a_is_first if len(asked) == 1 else None,
        reasoning="\n\n".join(reasonings) if reasonings else None,
        tags=pair.tags,
        asked=tuple(asked),
    )


def _averaged(asked: Sequence[Asked]) -> tuple[float, float]:
    """The logs of the averaged probabilities of response A and of response B."""
    signs = np.array([1 if one.a_is_first else -1 for one in asked])
    logps = np.array([[one.logp_a, one.logp_b] for one in asked], np.float64)
    margins = signs * (logps[:, 0] - logps[:, 1])  # nats of response A over response B
    # The log of the sigmoid's mean, without the underflow of a probability near 0.
    log_a, log_b = (
        float(np.logaddexp.reduce(-np.logaddexp(0, -side)) - np.log(len(asked)))
        for side in (margins, -margins)
    )
    return log_a, log_b
