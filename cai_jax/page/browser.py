"""A browser of records: search, page through, compare. What it shows is data, never HTML.

The records are embedded as JSON in a <script> of a type that no browser runs, escaped so that no
text can end it; page/report.js makes text nodes of them. Nothing is fetched.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.page.markup import Html, element

DATA = "records"
WARNING = (
    "These records hold what people and models wrote while harm was asked for on purpose. Some of "
    "it is offensive or harmful, and is here to be studied."
)
KEYS = {
    "j": "next",
    "k": "previous",
    "/": "search",
    "d": "changes on or off",
    "Esc": "leave the search",
}
# Between the tags of a <script>, these could end it, or open a comment in it; the last two are
# line ends to older readers of JavaScript.
ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def collection(
    name: str,
    what: str,
    views: Sequence[Mapping[str, Any]],
    *,
    total: int,
    where: str,
    group: str,
    principles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The records of one artifact.

    Args:
        name: of the step.
        what: its records are, as "RL samples"; the reader chooses by both.
        views: as page/records.py makes them.
        total: records there are, whether shown or not.
        where: the file that has all.
        group: what the records' groups are, as "iteration".
        principles: id -> wording.
    """
    return {
        "name": f"{name}: {what}",
        "what": what,
        "total": total,
        "where": where,
        "group": group,
        "principles": dict(principles or {}),
        "records": list(views),
    }


def embedded(value: Any) -> Html:
    """JSON for a <script>: equal to `value` once parsed, and without a character of markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Html(text.translate(ESCAPED))


def browser(collections: Sequence[Mapping[str, Any]]) -> Html:
    """The browser, behind its warning."""
    kinds = list(dict.fromkeys(of["what"] for of in collections))
    options = [
        element(
            "optgroup",
            *(
                element("option", of["name"], value=i)
                for i, of in enumerate(collections)
                if of["what"] == kind
            ),
            label=kind,
        )
        for kind in kinds
    ]
    choose = element("select", *options, id="collection")
    tools = element(
        "form",
        _field("Records", choose),
        _field("Search", element("input", id="search", type="search", autocomplete="off")),
        _field("Show", element("select", id="group")),
        _field("Order", element("select", id="order")),
        class_="tools",
        role="search",
    )
    pager = element(
        "div",
        element("button", "\u2190", id="previous", type="button", aria_label="Previous record"),
        element("span", id="position", role="status"),
        element("button", "\u2192", id="next", type="button", aria_label="Next record"),
        element("input", id="slider", type="range", min=1, aria_label="Position"),
        element("button", "Changes", id="changes", type="button", aria_pressed="true"),
        class_="pager",
    )
    hits = element("ol", id="hits", role="listbox", tabindex=0, aria_label="Records found")
    record = element("article", id="record", tabindex=-1, aria_label="Record")
    keys = [element("span", element("kbd", key), f" {what}") for key, what in KEYS.items()]
    return element(
        "div",
        element("noscript", element("p", "Reading the records needs JavaScript.", class_="note")),
        element(
            "div",
            element("p", WARNING),
            element("button", "Show the records", id="reveal", type="button"),
            id="warning",
            class_="warning",
        ),
        element(
            "div",
            tools,
            element("p", id="left-out", class_="note"),
            element("div", hits, element("div", pager, record), class_="columns"),
            element("p", *keys, class_="keys"),
            id="browser",
            hidden=True,
        ),
        element("script", embedded({"collections": collections}), id=DATA, type="application/json"),
    )


def _field(label: str, control: Html) -> Html:
    return element("label", element("span", label), control)
