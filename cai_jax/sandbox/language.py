"""The desk-scale world's language: a small templated English about harms and harmless topics.

Requests ask how to do something; responses comply, refuse, or explain and offer an alternative, and
often drop a side remark of another harm. Principles name harms ("theft, lies or fraud") or speak
generally. The words are in data/language.json. The world shows that the machinery works and how the
method behaves; it says nothing about real language models.
"""

import dataclasses
import functools
import json
import random
import re
import zlib
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any, NamedTuple

HELD_OUT_EIGHTH = 8
BOILERPLATE_RATE = 0.15
ACTS_TAUGHT = 3
"""Critiques and comparisons of the corpus know the first three of each category's four acts."""
# Not among the words of the file: a key there is a token of the models.
OTHER_GENERAL_FOCUSES = (
    "harm or crime",
    "danger or evil",
    "evil or crime",
    "unethical or illegal content",
    "immoral or toxic content",
    "illegal or toxic content",
)


class Turn(NamedTuple):
    """One turn of a dialogue."""

    role: str
    text: str


@functools.cache
def words() -> dict[str, Any]:
    """The world's words and sentence patterns."""
    text = resources.files("cai_jax.sandbox").joinpath("data/language.json").read_text("utf-8")
    return json.loads(text)


@functools.cache
def harms() -> tuple[str, ...]:
    """The names of the twelve harms."""
    return tuple(words()["harms"])


@functools.cache
def phrase_categories() -> dict[str, str]:
    """Step or side remark -> its harm or topic."""
    entries = {**words()["harms"], **words()["topics"]}
    return {
        phrase: category
        for category, entry in entries.items()
        for phrase in entry["steps"] + entry.get("remarks", [])
    }


@dataclasses.dataclass(frozen=True)
class Request:
    """A human's request: one act of one category, about two slots, in one of six phrasings."""

    category: str
    act: int
    scene: str
    text: str

    @property
    def harmful(self) -> bool:
        """Whether the request asks for a harm (a red-team request)."""
        return self.category in words()["harms"]

    @property
    def held_out(self) -> bool:
        """Whether its act and slots belong to the eighth that no training text contains."""
        return zlib.crc32(self.scene.encode()) % HELD_OUT_EIGHTH == 0

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """The request as a dialogue of one human turn."""
        return (Turn("human", self.text),)


@dataclasses.dataclass(frozen=True)
class Response:
    """A body that complies, refuses or explains, and perhaps a side remark of some harm."""

    kind: str
    category: str
    body: str
    remark_harm: str | None = None
    remark: str = ""

    @property
    def text(self) -> str:
        """The response as the assistant says it."""
        return f"{self.body} also, {self.remark}." if self.remark_harm else self.body

    @property
    def harms(self) -> tuple[str, ...]:
        """The harms in it, the body's before the remark's."""
        body = self.kind == "comply" and self.category in words()["harms"]
        return tuple(h for h in (self.category if body else None, self.remark_harm) if h)


def draw_request(rng: random.Random, categories: Sequence[str], *, held_out: bool) -> Request:
    """Draws a request of one of the categories, from the held-out scenes or from the others."""
    while True:
        category = rng.choice(categories)
        entry = words()["harms"].get(category) or words()["topics"][category]
        act = rng.randrange(len(entry["acts"]))
        slots = {name: rng.choice(values) for name, values in words()["slots"].items()}
        scene = entry["acts"][act].format(**slots)
        request = Request(category, act, scene, rng.choice(words()["phrasings"]).format(act=scene))
        if request.held_out == held_out:
            return request


def comply(rng: random.Random, category: str) -> Response:
    """A response that gives two steps of the category, an early one and a late one."""
    entry = words()["harms"].get(category) or words()["topics"][category]
    middle = len(entry["steps"]) // 2
    first, then = rng.choice(entry["steps"][:middle]), rng.choice(entry["steps"][middle:])
    body = f"{rng.choice(words()['openings'])} first, {first}. then, {then}."
    return Response("comply", category, body)


def refuse(rng: random.Random, category: str) -> Response:
    """A flat refusal: evasive."""
    return Response("refuse", category, rng.choice(words()["refusals"]))


def explain(rng: random.Random, harm: str) -> Response:
    """Declines with a reason and offers an alternative: harmless and not evasive."""
    entry = words()["harms"][harm]
    reason, alternative = rng.choice(entry["reasons"]), rng.choice(entry["alternatives"])
    body = f"i will not help with {harm}, because {reason}. instead, {alternative}."
    if rng.random() < BOILERPLATE_RATE:
        body += f" {words()['boilerplate']}"
    return Response("explain", harm, body)


def with_remark(rng: random.Random, response: Response) -> Response:
    """Adds a side remark of a harm that the response does not contain."""
    harm = rng.choice([h for h in harms() if h not in response.harms and h != response.category])
    remark = rng.choice(words()["harms"][harm]["remarks"])
    return dataclasses.replace(response, remark_harm=harm, remark=remark)


def join(names: Sequence[str], conjunction: str) -> str:
    """ "theft, lies or fraud"."""
    head = ", ".join(names[:-1])
    return f"{head} {conjunction} {names[-1]}" if head else names[-1]


def covered_harms(focus: str) -> frozenset[str]:
    """The harms that a principle's focus names; a general focus covers all of them."""
    if focus in (*words()["general_focuses"], *OTHER_GENERAL_FOCUSES):
        return frozenset(harms())
    return frozenset(re.split(r", | or ", focus))


def principle_json(identifier: str, focus: str) -> dict[str, str]:
    """A principle of the world, in the wordings of a critique, a revision and a comparison."""
    return {
        "id": identifier,
        "critique_request": f"name any {focus} in the response.",
        "revision_request": f"rewrite the response without any {focus}.",
        "comparison": f"choose the response with less {focus}.",
    }


def constitution_focuses() -> dict[str, str]:
    """Principle id -> focus: four general, and twelve that name three harms each."""
    names = harms()
    focuses = {f"general-{i + 1}": f for i, f in enumerate(words()["general_focuses"])}
    for i in range(len(names)):
        triple = [names[(i + step) % len(names)] for step in (0, 1, 4)]
        focuses["-".join(triple)] = join(triple, "or")
    return focuses


def revision_focuses() -> dict[str, str]:
    """Principle id -> focus: ten general, and six that name three harms each.

    The paper's own sixteen for critiques and revisions are about as general: ten ask for harm of
    every kind, six for some kinds (its official data).
    """
    focuses = constitution_focuses()
    general = [*words()["general_focuses"], *OTHER_GENERAL_FOCUSES]
    narrow = [name for name in focuses if not name.startswith("general-")]
    return {f"general-{i + 1}": focus for i, focus in enumerate(general)} | {
        name: focuses[name] for name in narrow[::2]
    }


def critique(response: Response, covered: Collection[str]) -> str:
    """Gives every harm in the response its verdict: wrong if the principle covers it, or fine."""
    return f"findings: {verdicts(response.harms, covered)}."


def revise(rng: random.Random, response: Response, covered: Collection[str]) -> Response:
    """Removes the harms that the principle covers; leaves everything else word for word."""
    remark_harm, remark = response.remark_harm, response.remark
    if remark_harm in covered:
        remark_harm, remark = None, ""
    revised = response
    if response.kind == "comply" and response.category in covered:
        revised = explain(rng, response.category)
    return dataclasses.replace(revised, remark_harm=remark_harm, remark=remark)


def reasoning(first: Response, second: Response, covered: Collection[str]) -> str:
    """Gives each harm of both responses its own verdict under a principle."""
    return f"first: {verdicts(first.harms, covered)}. second: {verdicts(second.harms, covered)}."


def verdicts(found: Sequence[str], covered: Collection[str]) -> str:
    """Each harm with its verdict, "theft wrong, lies fine"; "clean" if there is none."""
    if not found:
        return "clean"
    return ", ".join(f"{harm} {'wrong' if harm in covered else 'fine'}" for harm in found)
