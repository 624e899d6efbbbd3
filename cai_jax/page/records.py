"""Views of the records that people read: chains, comparisons, RL samples, answers of models.

Records are those of the text artifacts. Their text is untrusted, and may be harmful: everything is
escaped, and `gate` puts it behind a click with a warning.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cai_jax.page.markup import Html, element, fold
from cai_jax.page.plots import number

Item = TypeVar("Item")

WARNING = "may contain harmful or offensive text; open to read"
TITLE_LENGTH = 120
GOOD = ("helpful", "explains", "harmless", "offers_alternative")


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def gate(what: str, *children: str) -> Html:
    """Children behind a click with the warning."""
    return fold(f"{what}: {WARNING}", *children, class_="gate")


def chain_card(chain: Any, principles: Mapping[str, str], *, is_open: bool = False) -> Html:
    """A response and, round by round, the principle, the critique and the revision."""
    parts = [*_turns(chain.dialogue), _turn("Response", chain.response)]
    text = chain.response
    for position, one in enumerate(chain.rounds, start=1):
        changed = "" if one.revision.split() != text.split() else _tag("unchanged")
        parts.append(
            element(
                "div",
                _turn(f"Round {position}", _principle(one.principle, principles)),
                _turn("Critique", one.critique),
                _turn("Revision", one.revision, changed),
                class_="round",
            )
        )
        text = one.revision
    return _card(_title(chain), parts, is_open)


def comparison_card(
    comparison: Any, principles: Mapping[str, str], *, is_open: bool = False
) -> Html:
    """Both responses, the label, and each question behind it with what the model answered."""
    c = comparison
    parts = _turns(c.dialogue)
    if c.principle:
        parts.append(_turn("Principle", _principle(c.principle, principles)))
    better = _tag("preferred", "good")
    parts.append(_turn("Response A", c.response_a, better if c.p_a > 0.5 else ""))
    parts.append(_turn("Response B", c.response_b, better if c.p_a < 0.5 else ""))
    if c.reasoning and len(c.asked) < 2:
        parts.append(_turn("Reasoning", c.reasoning))
    bar = element("span", element("span", style=f"width:{100 * c.p_a:.1f}%"), class_="bar")
    parts.append(_turn("Soft label", element("span", bar, f"P(A is better) = {c.p_a:.3f}")))
    if len(c.asked) > 1:
        questions = [_question(c, one, principles) for one in c.asked]
        parts.append(fold(f"{len(questions)} questions, whose answers are averaged", *questions))
    elif c.logp_a is not None and c.logp_b is not None:
        parts.append(_turn("Raw", _raw(c)))
    return _card(_title(c), parts, is_open)


def _question(comparison: Any, asked: Any, principles: Mapping[str, str]) -> Html:
    parts = [_turn("Raw", _raw(asked))]
    if comparison.principle is None:
        parts.insert(0, _turn("Principle", _principle(asked.principle, principles)))
    if asked.reasoning:
        parts.insert(-1, _turn("Reasoning", asked.reasoning))
    return element("div", *parts, class_="round")


def _raw(answer: Any) -> str:
    """The log-probabilities of a comparison or of one question, and who stood where."""
    stood = {True: "; response A stood at (A)", False: "; response A stood at (B)"}
    raw = f"log P( (A)) = {answer.logp_a:.3f}, log P( (B)) = {answer.logp_b:.3f}"
    return raw + stood.get(answer.a_is_first, "")


def rollout_card(rollout: Any) -> Html:
    """One RL sample with its score and KL."""
    return element(
        "div",
        *(_turn(turn.role.capitalize(), turn.text) for turn in rollout.dialogue),
        _turn("Response", rollout.response),
        _turn(
            "Reward",
            f"PM score {number(rollout.score)}, KL to the reference {number(rollout.kl)} nats, "
            f"ended by {rollout.finish_reason}",
        ),
        class_="round",
    )


def rollout_cards(rollouts: Sequence[Any], num_moments: int, num_each: int) -> list[Html]:
    """Samples at evenly spaced moments of training, from its start to its end."""
    moments: dict[int, list[Any]] = {}
    for rollout in rollouts:
        moments.setdefault(rollout.iteration, []).append(rollout)
    cards = []
    for iteration in spread(sorted(moments), num_moments):
        group = moments[iteration]
        mean = math.fsum(r.score for r in group) / len(group)
        summary = f"Iteration {iteration}: mean PM score {number(mean)} over {len(group)} samples"
        cards.append(_card(summary, [rollout_card(r) for r in spread(group, num_each)], False))
    return cards


def answer_card(answers: Sequence[Any], *, is_open: bool = False) -> Html:
    """What each model said to one prompt, with the judge's verdict."""
    parts = _turns(answers[0].dialogue)
    parts += [_turn(a.model, a.response, *_verdict_tags(a.verdict)) for a in answers]
    return _card(_title(answers[0]), parts, is_open)


def grouped(records: Sequence[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    """Records with the same key together, in the order of first appearance."""
    groups: dict[Any, list[Item]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _verdict_tags(verdict: Mapping[str, Any]) -> list[Html]:
    tags = [_tag(str(harm), "bad") for harm in verdict.get("harms") or ()]
    for name, value in verdict.items():
        label = name.replace("_", " ")
        if value is True:
            # To help with a harm is no merit.
            helps_harm = name == "helpful" and verdict.get("harms")
            kind = "" if helps_harm else "good" if name in GOOD else "bad"
            tags.append(_tag(label, kind))
        elif isinstance(value, float):
            tags.append(_tag(f"{label} {number(value)}"))
        elif name == "refusal" and value != "none":
            tags.append(_tag(f"{value} refusal"))
    return tags


def _principle(identifier: str, principles: Mapping[str, str]) -> str:
    text = principles.get(identifier)
    return f"{identifier}: {text}" if text else identifier


def _title(record: Any) -> Html:
    text = record.dialogue[-1].text
    return element("span", text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 3] + "...")


def _turns(dialogue: Sequence[Any]) -> list[Html]:
    """The turns of a dialogue; none if the title of its card says it all."""
    if len(dialogue) == 1 and len(dialogue[0].text) <= TITLE_LENGTH:
        return []
    return [_turn(turn.role.capitalize(), turn.text) for turn in dialogue]


def _turn(label: str, text: str, *tags: str) -> Html:
    return element(
        "div",
        element("span", label),
        element("div", element("div", text, class_="words"), *tags),
        class_="turn",
    )


def _tag(text: str, kind: str = "") -> Html:
    return element("span", text, class_=f"tag {kind}".strip())


def _card(summary: str, parts: Sequence[str], is_open: bool) -> Html:
    return fold(summary, *parts, class_="card", is_open=is_open)
