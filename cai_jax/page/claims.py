"""The paper's claims and what became of them, from the claims.json of `cai_jax.reproduce`."""

from collections.abc import Mapping
from typing import Any

from cai_jax.page import figures
from cai_jax.page.markup import Html, element, fold, join, table
from cai_jax.page.plots import number

FIELDS = frozenset(
    ("statement", "about", "source", "card", "claims", "required", "checks", "figures", "variants")
)
VERDICTS = {"held": "good", "did not hold": "bad", "not tested": ""}


def headline(found: Mapping[str, Any]) -> str:
    """How many claims held, and of what."""
    claims = found["claims"]
    held = sum(claim["verdict"] == "held" for claim in claims)
    tested = sum(claim["verdict"] != "not tested" for claim in claims)
    return f"{held} of {tested} claims that could be tested held. {found['about']}"


def claims_table(found: Mapping[str, Any]) -> Html:
    """One row a claim: the verdict, and each quantity with its interval and what was asked."""
    rows = []
    for claim in (*found["claims"], found["required"]):
        name = f"{claim['number']}. {claim['claim']}" if claim["number"] else claim["claim"]
        measured = [_part(part) for part in claim["parts"]]
        if claim["reason"]:
            measured.append(element("small", claim["reason"]))
        verdict = element("span", claim["verdict"], class_=f"tag {VERDICTS[claim['verdict']]}")
        rows.append([name, verdict, _place(claim["figure"], found["figures"]), join(measured)])
    headings = ["claim", "verdict", "figure", "mean over seeds, 95 % interval, and what was asked"]
    last = (
        "The last row is a requirement of this project, not a claim of the paper. docs/claims.md "
        "has each test in full, and why claims did not hold as far as that was checked."
    )
    return element("div", table(headings, rows, f"{headline(found)} {last}"), class_="claims")


def checks(found: Mapping[str, Any]) -> Html:
    """What explanations of failing claims can be held against; nothing without any."""
    rows = [[check["name"], figures.interval(check["interval"])] for check in found["checks"]]
    caption = "With the number of the claim. Nothing was asked of these, and no verdict is theirs."
    parts = table(["quantity", "mean over seeds, 95 % interval"], rows, caption)
    return fold("Quantities to check explanations by", parts) if rows else Html("")


def _place(name: str, drawn: Mapping[str, Any]) -> str:
    """The figure's number, which leads there if it is in the page."""
    text = name if name.isdecimal() else "text"
    return element("a", text, href=f"#{figures.anchor(name)}") if name in drawn else text


def _part(part: Mapping[str, Any]) -> Html:
    mean, ends = number(part["interval"]["value"]), figures.ends(part["interval"])
    asked = part["asked"].replace(">=", "\u2265").replace("<=", "\u2264")
    mark = ("\u2713", "yes", "good") if part["holds"] else ("\u2717", "no", "bad")
    return element(
        "small",
        element("span", mark[0], class_=f"mark {mark[2]}", role="img", aria_label=mark[1]),
        element("span", f"{part['name']}: {mean} ({ends})"),
        element("span", f"asked: {asked}", class_="asked"),
        class_="claim-part",
    )
