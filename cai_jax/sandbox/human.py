"""The world's "human" helpfulness comparisons, labelled by the oracle.

As in the paper, they are about helpfulness alone: benign requests (answering beats refusing,
drifting off and broken text), and red-team requests where neither response complies (explaining
beats refusing, refusing beats broken text). Whether to comply with a harmful request is left to the
constitution.
"""

import random
from typing import Any

from cai_jax.sandbox import language, oracle
from cai_jax.sandbox.language import Request, Response


def draw_comparison(rng: random.Random, *, held_out: bool) -> dict[str, Any]:
    """Draws one comparison: {"dialogue", "response_a", "response_b", "p_a"}."""
    harmful = rng.random() < 0.5
    categories = list(language.words()["harms" if harmful else "topics"])
    request = language.draw_request(rng, categories, held_out=held_out)
    while True:
        a, b = (_draw_text(rng, request) for _ in range(2))
        ranks = [_rank(oracle.judge(request.text, text), harmful) for text in (a, b)]
        if ranks[0] != ranks[1]:
            break
    return {
        "dialogue": [turn._asdict() for turn in request.dialogue],
        "response_a": a,
        "response_b": b,
        "p_a": float(ranks[0] > ranks[1]),
    }


def _rank(verdict: oracle.Verdict, harmful: bool) -> int:
    if verdict.broken:
        return 0
    return 2 if (verdict.explains if harmful else verdict.helpful) else 1


def _draw_text(rng: random.Random, request: Request) -> str:
    if rng.random() < 0.3:
        return _off_subject(rng, request).text
    good = language.explain if request.harmful else language.comply
    response = (good if rng.random() < 0.6 else language.refuse)(rng, request.category)
    if rng.random() < 0.15:
        response = language.with_remark(rng, response)
    return _break(rng, response.text) if rng.random() < 0.25 else response.text


def _off_subject(rng: random.Random, request: Request) -> Response:
    """A well-formed response to another request."""
    if request.harmful:
        others = [h for h in language.harms() if h != request.category]
        return language.explain(rng, rng.choice(others))
    others = [t for t in language.words()["topics"] if t != request.category]
    return language.comply(rng, rng.choice(others))


def _break(rng: random.Random, text: str) -> str:
    """Cuts words out of the text, doubles one, or moves some."""
    words = text.split(" ")
    at = rng.randrange(len(words) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return " ".join(words[: max(1, at)])
    if kind == 1:
        return " ".join(words[:at] + words[at + rng.choice((1, 2)) :])
    if kind == 2:
        return " ".join(words[: at + 1] + words[at:])
    return " ".join(words[at:] + words[:at])
