"""What the Goodhart watch of an RL step found: an alarm, and phrases that came to be everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element, fold, join, table
from cai_jax.page.plots import number

MOST = 20


def watch(name: str, counts: Mapping[str, Any], phrases: Sequence[Mapping[str, Any]]) -> Html:
    """The alarm in words, and behind a click the phrases of the last responses that grew."""
    parts = [element("p", alarm_line(name, counts), class_="alarm" if counts.get("alarm") else "")]
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


def alarm_line(name: str, counts: Mapping[str, Any]) -> str:
    """One sentence about an RL step: what the judge says, if there was one."""
    if counts.get("alarm"):
        return f"{name}: alarm at {counts['alarm']}."
    if "alarm" in counts:
        return f"{name}: no alarm; the judge did not fall while the preference model's score rose."
    return f"{name}: no judge but the preference model itself read these responses."
