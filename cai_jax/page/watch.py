"""What the Goodhart watch of an RL step found: an alarm, and phrases that came to be everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element, fold, join, table
from cai_jax.page.plots import number

MOST = 20


def watch(counts: Mapping[str, Any], phrases: Sequence[Mapping[str, Any]]) -> Html:
    """The alarm in words, and behind a click the phrases of the last responses that grew."""
    alarm = "alarm" if counts.get("alarm") else "note"
    parts = [element("p", f"Goodhart watch: {verdict(counts)}.", class_=alarm)]
    if phrases:
        rows = [
            [one["phrase"], *(number(one[key]) for key in ("first", "last", "log_ratio"))]
            for one in phrases[:MOST]
        ]
        headings = ["phrase", "share at first", "share at last", "log-ratio (nats)"]
        caption = (
            "Phrases whose share of the responses grew beyond chance, against the first responses, "
            f"which are the reference's: {len(rows)} of {len(phrases)}. Some are what was wanted."
        )
        summary = "Phrases that grew: words of the model, which may be harmful; open to read"
        parts.append(fold(summary, table(headings, rows, caption)))
    return join(parts)


def verdict(counts: Mapping[str, Any]) -> str:
    """What the watch of an RL step says, from the counts of its manifest."""
    if counts.get("alarm"):
        return f"alarm at {counts['alarm']}"
    if "alarm" in counts:
        return "no alarm: the judge did not fall while the score rose"
    return "no judge but the preference model itself"
