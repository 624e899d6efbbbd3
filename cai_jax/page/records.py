"""Records as the browser of the page shows them: a title, measures to sort by, and parts of text.

Records are those of the text artifacts. Their text is untrusted, and may be harmful: it goes into
the page as data alone (page/browser.py), and is shown behind a click.

A view is a dict: `title`; `group`, which the reader can choose (an iteration, say); `measures`,
name -> number; `parts`, each of
    label, text     what stands in the margin, and beside it
    principle       the id of a principle, whose wording the collection has, in place of a text
    base            the number of the part that this one revises: the words that differ are marked
    share           0 to 1, drawn as a bar
    tags            [text, "good" or "bad" or ""], ...
    side            "a" or "b": two parts that stand beside each other where there is room
    rule            true: a line above it
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cai_jax.page.plots import number

Item = TypeVar("Item")
View = dict[str, Any]

TITLE_LENGTH = 120
GOOD = ("helpful", "explains", "harmless", "offers_alternative")
JUDGES = {
    "preference_model": "Preference model",
    "feedback_model": "Feedback model",
    "people": "A person",
}


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def chain_view(chain: Any) -> View:
    """A response and, round by round, the principle, the critique and the revision."""
    parts = [*_turns(chain.dialogue), {"label": "Response", "text": chain.response}]
    before, text, changed = len(parts) - 1, chain.response, 0
    for position, one in enumerate(chain.rounds, start=1):
        unchanged = one.revision.split() == text.split()
        changed += not unchanged
        parts += [
            {"label": f"Principle {position}", "principle": one.principle, "rule": True},
            {"label": f"Critique {position}", "text": one.critique},
            {
                "label": f"Revision {position}",
                "text": one.revision,
                "base": before,
                "tags": [["unchanged", ""]] if unchanged else [],
            },
        ]
        before, text = len(parts) - 1, one.revision
    times = "once" if changed == 1 else f"{changed} times"
    group = f"revised {times}" if changed else "left as it was"
    return _view(chain, parts, group, {"revisions that change something": changed})


def comparison_view(comparison: Any) -> View:
    """Both responses, the label, and each question behind it with what the model answered."""
    c = comparison
    parts = _turns(c.dialogue)
    if c.principle:
        parts.append({"label": "Principle", "principle": c.principle})
    better = [["preferred", "good"]]
    parts += [
        {"label": "Response A", "text": c.response_a, "side": "a"},
        {"label": "Response B", "text": c.response_b, "side": "b"},
    ]
    if c.p_a != 0.5:
        parts[-2 if c.p_a > 0.5 else -1]["tags"] = better
    if c.reasoning and len(c.asked) < 2:
        parts.append({"label": "Reasoning", "text": c.reasoning})
    label = f"P(A is better) = {c.p_a:.3f}"
    parts.append({"label": "Soft label", "text": label, "share": c.p_a})
    if len(c.asked) > 1:
        for position, one in enumerate(c.asked, start=1):
            first = len(parts)
            if c.principle is None:
                parts.append({"label": "Principle", "principle": one.principle})
            if one.reasoning:
                parts.append({"label": "Reasoning", "text": one.reasoning})
            parts.append({"label": f"Answer {position}", "text": _raw(one)})
            parts[first]["rule"] = True
    elif c.logp_a is not None and c.logp_b is not None:
        parts.append({"label": "Answer", "text": _raw(c)})
    measures = {"P(A is better)": c.p_a, "confidence": max(c.p_a, 1 - c.p_a)}
    group = "A is better" if c.p_a > 0.5 else "B is better" if c.p_a < 0.5 else "even"
    return _view(c, parts, group, measures)


def rollout_view(rollout: Any) -> View:
    """One RL sample with its score and KL."""
    reward = (
        f"PM score {number(rollout.score)}, KL to the reference {number(rollout.kl)} nats, "
        f"ended by {rollout.finish_reason}"
    )
    parts = [
        *_turns(rollout.dialogue),
        {"label": "Response", "text": rollout.response},
        {"label": "Reward", "text": reward},
    ]
    measures = {"PM score": rollout.score, "KL": rollout.kl}
    return _view(rollout, parts, f"iteration {rollout.iteration}", measures)


def answers_view(answers: Sequence[Any]) -> View:
    """What each model said to one prompt, with the judge's verdict."""
    parts = _turns(answers[0].dialogue)
    parts += [
        {"label": a.model, "text": a.response, "tags": verdict_tags(a.verdict), "rule": True}
        for a in answers
    ]
    return _view(answers[0], parts, answers[0].prompt_set.replace("_", " "), {})


def judged_view(pair: Any, judgements: Sequence[Any]) -> View:
    """Two models' answers to one prompt, and what each judge said of them, for Elo."""
    models = [pair.tags["model_a"], pair.tags["model_b"]]
    parts = _turns(pair.dialogue)
    parts += [
        {"label": name, "text": text, "side": side}
        for name, text, side in zip(models, (pair.response_a, pair.response_b), "ab")
    ]
    for one in judgements:
        judge = {"label": JUDGES.get(one.judge, one.judge), "text": "a tie"}
        if one.p_a is not None:
            judge |= {"text": f"P({models[0]} is better) = {one.p_a:.3f}", "share": one.p_a}
        parts.append(judge)
    decided = [one.p_a for one in judgements if one.p_a is not None]
    measures = {"P(the first is better)": decided[0]} if decided else {}
    return _view(pair, parts, " against ".join(models), measures)


def grouped(records: Sequence[Item], key: Any) -> list[list[Item]]:
    """Records with the same key together, in the order of first appearance."""
    groups: dict[Any, list[Item]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _view(record: Any, parts: list[View], group: str, measures: Mapping[str, float]) -> View:
    text = record.dialogue[-1].text
    title = text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 3] + "..."
    return {"id": record.id, "title": title, "group": group, "measures": measures, "parts": parts}


def _turns(dialogue: Sequence[Any]) -> list[View]:
    return [{"label": turn.role.capitalize(), "text": turn.text} for turn in dialogue]


def _raw(answer: Any) -> str:
    """The log-probabilities of a comparison or of one question, and who stood where."""
    stood = {True: "; response A stood at (A)", False: "; response A stood at (B)"}
    raw = f"log P( (A)) = {answer.logp_a:.3f}, log P( (B)) = {answer.logp_b:.3f}"
    return raw + stood.get(answer.a_is_first, "")


def verdict_tags(verdict: Mapping[str, Any]) -> list[list[str]]:
    """What a judge said of an answer, each as [text, "good" or "bad" or ""]."""
    tags = [[str(harm), "bad"] for harm in verdict.get("harms") or ()]
    for name, value in verdict.items():
        label = name.replace("_", " ")
        if value is True:
            # To help with a harm is no merit.
            helps_harm = name == "helpful" and verdict.get("harms")
            tags.append([label, "" if helps_harm else "good" if name in GOOD else "bad"])
        elif isinstance(value, float):
            tags.append([f"{label} {number(value)}", ""])
        elif name == "refusal" and value != "none":
            tags.append([f"{value} refusal", ""])
    return tags
