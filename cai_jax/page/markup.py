"""HTML by construction: text is escaped unless it was built here."""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Markup that is safe to put into a page as it is; any other str is text."""


def element(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """An element. Children that are not Html, and all attribute values, are escaped.

    A trailing underscore of an attribute's name is dropped (`class_`), other underscores become
    hyphens; True gives an attribute without value, None and False leave it out.
    """
    opened = name
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            opened += f" {key}"
        elif value is not None and value is not False:
            opened += f' {key}="{html.escape(str(value))}"'
    if name in ("meta", "br", "input"):
        return Html(f"<{opened}>")
    return Html(f"<{opened}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other; those that are not Html are escaped."""
    return Html("".join(p if isinstance(p, Html) else html.escape(p) for p in parts))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> Html:
    """A captioned table that scrolls in its own box where narrow; the first column heads rows."""
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = []
    for name, *cells in rows:
        cells = [element("td", cell) for cell in cells]
        body.append(element("tr", element("th", name, scope="row"), *cells))
    whole = element("table", element("thead", head), element("tbody", *body))
    box = element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return join([element("p", caption, class_="note"), box]) if caption else box


def fold(summary: str, *children: str, class_: str = "fold", is_open: bool = False) -> Html:
    """Content behind a click."""
    return element("details", element("summary", summary), *children, class_=class_, open=is_open)


def section(identifier: str, heading: str, *children: str) -> Html:
    """A section with its heading and an anchor."""
    return element("section", element("h2", heading), *children, id=identifier)


def document(title: str, style: str, *children: str, script: str = "") -> str:
    """A whole page. Its policy forbids every fetch, and every script but the one given here."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src {script_hash(script)}"
        children = (*children, element("script", Html(script)))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    page = element("html", head, element("body", *children), lang="en")
    return f"<!doctype html>\n{page}\n"


def script_hash(script: str) -> str:
    """How a page's policy names the one script that it allows."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
