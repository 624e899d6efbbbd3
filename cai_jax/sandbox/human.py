"""The world's "human" judgements, made by the oracle: of drawn and of given pairs.

As in the paper, they are about helpfulness alone. One of two responses helps: to a benign request,
by answering it; to a red-team request, where neither complies, by explaining and offering something
else. The other refuses, lectures, drifts off or is broken. Whether to comply with a harmful request
is left to the constitution.

The baselines of Bai et al. 2022a need people who do judge that: `preferred` asks which of two given
responses is less harmful, no matter whether it is evasive, or which does what was asked for.
"""

import random
from collections.abc import Sequence
from typing import Any

from cai_jax.sandbox import language, oracle
from cai_jax.sandbox.language import Request, Response

QUESTIONS = ("harmlessness", "helpfulness")
REMARK_RATE = 0.15
BENIGN_RATES = {"good": 0.5, "refuse": 0.2, "lecture": 0.2, "drift": 0.06, "break": 0.04}
RED_TEAM_RATES = {"good": 0.5, "refuse": 0.22, "drift": 0.24, "break": 0.04}
"""What people compare: mostly answers that help and answers that do not."""


def draw_comparison(rng: random.Random, *, held_out: bool) -> dict[str, Any]:
    """Draws one comparison: {"dialogue", "response_a", "response_b", "p_a"}."""
    harmful = rng.random() < 0.5
    categories = list(language.words()["harms" if harmful else "topics"])
    request = language.draw_request(rng, categories, held_out=held_out)
    while True:
        a, b = (_draw_text(rng, request) for _ in range(2))
        helps = [_helps(oracle.judge(request.text, text), harmful) for text in (a, b)]
        if helps[0] != helps[1]:
            break
    return {
        "dialogue": [turn._asdict() for turn in request.dialogue],
        "response_a": a,
        "response_b": b,
        "p_a": float(helps[0]),
    }


def preferred(question: str, request: str, response_a: str, response_b: str) -> float | None:
    """1.0 if people prefer response A, 0.0 if B; None if they see no difference.

    Of harmlessness: fewer harms win, and a broken answer loses, but an evasive one is as good as an
    explanation. Of helpfulness: to do what was asked, harmful or not, beats to decline with a
    reason, which beats the rest.

    Args:
        question: one of QUESTIONS.
        request: the text of the last human turn.
        response_a, response_b: what to compare.
    """
    merit = _harmlessness if question == "harmlessness" else _helpfulness
    a, b = (merit(oracle.judge(request, text)) for text in (response_a, response_b))
    return None if a == b else float(a > b)


def _harmlessness(verdict: oracle.Verdict) -> int:
    return -1_000 if verdict.broken else -len(verdict.harms)


def _helpfulness(verdict: oracle.Verdict) -> int:
    return 2 if verdict.helpful else int(verdict.explains)


def _helps(verdict: oracle.Verdict, harmful: bool) -> bool:
    return verdict.explains if harmful else verdict.helpful


def _draw_text(rng: random.Random, request: Request) -> str:
    rates = RED_TEAM_RATES if request.harmful else BENIGN_RATES
    kind = rng.choices(list(rates), list(rates.values()))[0]
    if kind == "refuse":
        response = language.refuse(rng, request.category)
    elif kind == "lecture":
        response = language.explain(rng, rng.choice(language.harms()))
    elif kind == "drift":
        response = _drift(rng, request)
    else:
        good = language.explain if request.harmful else language.comply
        response = good(rng, request.category)
    if rng.random() < REMARK_RATE:
        response = language.with_remark(rng, response)
    return _break(rng, response.text) if kind == "break" else response.text


def _drift(rng: random.Random, request: Request) -> Response:
    """A well-formed response to another request: help with a topic, or words about a harm."""
    if request.harmful and rng.random() < 0.3:
        return language.explain(rng, _other(rng, language.harms(), request))
    return language.comply(rng, _other(rng, list(language.words()["topics"]), request))


def _other(rng: random.Random, categories: Sequence[str], request: Request) -> str:
    return rng.choice([category for category in categories if category != request.category])


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
