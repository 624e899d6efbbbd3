"""The corpus that the world's models are pretrained on, as weighted pieces of text.

Dialogues, critique-revision chains, comparisons with and without reasoning, a dictionary of
phrases, and short drills of the two gates (is a named harm covered by the principle?). Everything
is laid out by the same templates that the method uses (cai_jax/text/prompts.py).
"""

import functools
import random
import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from cai_jax.sandbox import language
from cai_jax.sandbox.language import Request, Response
from cai_jax.text import prompts
from cai_jax.text.constitution import Principle
from cai_jax.text.dialogue import CRITIQUE, CRITIQUE_REQUEST, HUMAN, REVISION_REQUEST, render

RUNNING_TEXT, ANSWER, VERDICT = 0.2, 1.0, 3.0
"""Loss weights: text around the answers, answers, and the words that decide."""

REMARK_RATE = {"red_team": 0.45, "benign": 0.15}
BODY_RATES = {"comply": 0.6, "refuse": 0.3, "explain": 0.1}
JUDGED_RATES = {"comply": 0.6, "refuse": 0.05, "explain": 0.35}
JUDGED_REMARK_RATE = 0.55
HELPFUL_REMARK_RATE = 0.3
NAMING_RATE = 0.4


class Piece(NamedTuple):
    """A stretch of text and the weight of its tokens in the loss."""

    text: str
    weight: float


Pieces = list[Piece]
Shares = dict[Callable[[random.Random], Pieces], float]


def draw_pieces(rng: random.Random) -> Pieces:
    """Draws one document of the pretraining corpus."""
    return draw_of(rng, SHARES)


def draw_drill(rng: random.Random) -> Pieces:
    """Draws one document of the drills that come before the corpus.

    Whether a phrase's harm is covered takes a small model long to learn among other things, and
    little when it sees nothing else; everything that judges builds on it.
    """
    return draw_of(rng, DRILL_SHARES)


def draw_of(rng: random.Random, shares: Shares) -> Pieces:
    """Draws a document of one of the kinds, by their shares."""
    kinds, weights = zip(*shares.items())
    return rng.choices(kinds, weights)[0](rng)


def dialogue_document(rng: random.Random) -> Pieces:
    """A request and a response."""
    request = draw_request(rng, benign=0.4)
    return dialogue_pieces(request, draw_response(rng, request))


def dialogue_pieces(request: Request, response: Response, weight: float = ANSWER) -> Pieces:
    """A dialogue that ends with the response, which has this weight."""
    return [
        Piece(render(request.dialogue), RUNNING_TEXT),
        Piece(f" {response.text}", weight),
    ]


def chain_document(
    rng: random.Random, response_weight: float = ANSWER, *, critiqued: bool = True
) -> Pieces:
    """A response, one critique and one revision under a principle; or the revision at once."""
    request = draw_request(rng, benign=0.15, taught=True)
    response = draw_judged_response(rng, request)
    focus = draw_focus(rng, response.harms)
    covered, principle = language.covered_harms(focus), _principle(focus)
    revision = language.revise(rng, response, covered)
    critique = [
        Piece(f"{CRITIQUE_REQUEST} {principle.critique_request}{CRITIQUE}", 0.0),
        Piece(" findings:", ANSWER),
        *verdict_pieces(response.harms, covered, naming=ANSWER),
    ]
    return [
        *dialogue_pieces(request, response, response_weight),
        *(critique if critiqued else ()),
        Piece(REVISION_REQUEST, ANSWER if critiqued else 0.0),
        Piece(f" {principle.revision_request}\n\nRevision:", 0.0),
        Piece(f" {revision.text}", ANSWER),
    ]


def comparison_document(rng: random.Random) -> Pieces:
    """A multiple choice answered directly."""
    return comparison_pieces(rng, *draw_comparison(rng))


def comparison_pieces(
    rng: random.Random,
    request: Request,
    first: Response,
    second: Response,
    focus: str,
    answer: int | None = None,
) -> Pieces:
    """A multiple choice and its answer: `answer`, or else the response with fewer covered harms."""
    covered = language.covered_harms(focus)
    prompt = prompts.multiple_choice(
        request.dialogue, _principle(focus).comparison, first.text, second.text
    )
    counts = [sum(harm in covered for harm in r.harms) for r in (first, second)]
    return choice_pieces(rng, prompt, covered, counts, answer)


def choice_pieces(
    rng: random.Random,
    prompt: str,
    covered: Collection[str],
    counts: Sequence[int],
    answer: int | None = None,
) -> Pieces:
    """A multiple choice and its answer; two in three say on the way what is wrong.

    One third says it of each phrase, right after it, and one third of each option. So the model
    learns to know it at these places, where the answer can look it up. Without such remarks a
    comparison teaches one word in eighty, and small models stay at chance.
    """
    remarks = rng.choice(("none", "phrases", "options"))
    if remarks == "none":
        pieces = [Piece(prompt, 0.0)]
    elif remarks == "phrases":
        pieces = _phrase_remarks(prompt, covered)
    else:
        first, second, end = prompt.split("]]]")
        verdicts = [Piece(_verdict(count > 0), VERDICT) for count in counts]
        pieces = [
            Piece(f"{first}]]]", 0.0),
            verdicts[0],
            Piece(f"{second}]]]", 0.0),
            verdicts[1],
            Piece(end, 0.0),
        ]
    answer = _fewer(rng, *counts) if answer is None else answer
    return [*pieces, Piece(prompts.CHOICES[answer], VERDICT)]


def _phrase_remarks(prompt: str, covered: Collection[str]) -> Pieces:
    """The prompt, with a verdict after each step and side remark."""
    pieces, end = [], 0
    for match in _phrases().finditer(prompt):
        harm = language.phrase_categories()[match.group()]
        pieces.append(Piece(prompt[end : match.end()], 0.0))
        pieces.append(Piece(_verdict(harm in covered), VERDICT))
        end = match.end()
    return [*pieces, Piece(prompt[end:], 0.0)]


def _verdict(wrong: bool) -> str:
    return " wrong" if wrong else " fine"


@functools.cache
def _phrases() -> re.Pattern:
    return re.compile("|".join(re.escape(phrase) for phrase in language.phrase_categories()))


def reasoning_document(
    rng: random.Random, *, turned_rate: float = 0.0, slip_rate: float | None = None
) -> Pieces:
    """A multiple choice answered after a chain of thought.

    At `turned_rate` it takes the principle the wrong way round: all its verdicts are the opposite
    of the true ones. With a `slip_rate` it ends with the choice, which is wrong at this rate. The
    answer follows what was thought in both.
    """
    request, first, second, focus = draw_comparison(rng)
    covered = language.covered_harms(focus)
    if turned_rate and rng.random() < turned_rate:
        covered = frozenset(language.harms()) - covered
    answer = better(rng, first, second, covered)
    conclusion: Pieces = []
    if slip_rate is not None:
        answer = 1 - answer if rng.random() < slip_rate else answer
        conclusion = conclusion_pieces(answer)
    comparison = _principle(focus).comparison
    return [
        Piece(prompts.reasoning_prompt(request.dialogue, comparison, first.text, second.text), 0.0),
        Piece(" first:", ANSWER),
        *verdict_pieces(first.harms, covered, naming=ANSWER),
        Piece(" second:", ANSWER),
        *verdict_pieces(second.harms, covered, naming=ANSWER),
        *conclusion,
        Piece(HUMAN, ANSWER),
        Piece(prompts.SO_THE_ANSWER.removeprefix(HUMAN), 0.0),
        Piece(prompts.CHOICES[answer], VERDICT),
    ]


def conclusion_pieces(answer: int) -> Pieces:
    """The end of a reasoning that says which response it chooses."""
    return [
        Piece(" choose", ANSWER),
        Piece((" first", " second")[answer], VERDICT),
        Piece(".", ANSWER),
    ]


def verdict_pieces(found: Sequence[str], covered: Collection[str], *, naming: float) -> Pieces:
    """The verdicts of language.verdicts; `naming` is the weight of the harms' names."""
    if not found:
        return [Piece(" clean.", naming)]
    pieces = []
    for i, harm in enumerate(found):
        pieces.append(Piece(f"{',' if i else ''} {harm}", naming))
        pieces.append(Piece(_verdict(harm in covered), VERDICT))
    return [*pieces, Piece(".", ANSWER)]


def reasoning_example(request: Request, first: Response, second: Response, focus: str) -> str:
    """A few-shot example of reasoning, with "{}" where the principle goes."""
    covered = language.covered_harms(focus)
    text = prompts.reasoning_prompt(request.dialogue, "{}", first.text, second.text)
    answer = better(random.Random(0), first, second, covered)
    return (
        f"{text.replace('{} Options:', '{}')} {language.reasoning(first, second, covered)}"
        f"{prompts.SO_THE_ANSWER}{prompts.CHOICES[answer]}"
    )


def dictionary_document(rng: random.Random) -> Pieces:
    """A phrase and the harm that it belongs to."""
    harm = rng.choice(language.harms())
    entry = language.words()["harms"][harm]
    phrase = rng.choice(entry["steps"] + entry["remarks"])
    return [Piece(f" {phrase}: {harm}.", ANSWER)]


def critique_drill(rng: random.Random) -> Pieces:
    """The critique's gate alone: harms named, then the verdict under a principle."""
    found = rng.sample(language.harms(), rng.choice((1, 1, 2)))
    focus = draw_focus(rng, found)
    request = _principle(focus).critique_request
    return [
        Piece(f"{CRITIQUE_REQUEST} {request}{CRITIQUE} findings:", 0.0),
        *verdict_pieces(found, language.covered_harms(focus), naming=0.0),
    ]


def reasoning_drill(rng: random.Random, *, concludes: bool = False) -> Pieces:
    """The judge's gate alone: a verdict for each harm, then the choice (twice if it concludes)."""
    sides = [rng.sample(language.harms(), rng.choice((0, 1, 1, 2))) for _ in range(2)]
    focus = draw_focus(rng, sides[0] + sides[1])
    covered = language.covered_harms(focus)
    pieces = [
        Piece(f" {_principle(focus).comparison}", 0.0),
        Piece(prompts.STEP_BY_STEP, 0.0),
    ]
    for name, found in zip(("first", "second"), sides):
        pieces.append(Piece(f" {name}:", 0.0))
        pieces += verdict_pieces(found, covered, naming=0.0)
    counts = [sum(harm in covered for harm in found) for found in sides]
    answer = _fewer(rng, counts[0], counts[1])
    return [
        *pieces,
        *(conclusion_pieces(answer) if concludes else ()),
        Piece(prompts.SO_THE_ANSWER, 0.0),
        Piece(prompts.CHOICES[answer], VERDICT),
    ]


def comparison_drill(rng: random.Random) -> Pieces:
    """The direct judge's gate alone: two phrases of different harms, no dialogue."""
    found = rng.sample(language.harms(), 2)
    focus = draw_focus(rng, found[: rng.choice((0, 1, 1, 1))])
    covered = language.covered_harms(focus)
    rng.shuffle(found)
    entries = [language.words()["harms"][harm] for harm in found]
    phrases = [f"yes, {rng.choice(e['steps'] + e['remarks'])}." for e in entries]
    prompt = prompts.multiple_choice([], _principle(focus).comparison, *phrases)
    return choice_pieces(rng, prompt, covered, [int(harm in covered) for harm in found])


def phrase_drill(rng: random.Random) -> Pieces:
    """The look-up that a direct judge makes: phrases under a principle, each with its verdict.

    Some name the harm before the verdict, as critiques do: a bridge from one look-up to the other.
    """
    found = [rng.choice(language.harms()) for _ in range(6)]
    focus = draw_focus(rng, found[:2])
    covered = language.covered_harms(focus)
    rng.shuffle(found)
    pieces = [Piece(f"\n\n\n{_principle(focus).comparison}", 0.0)]
    for harm in found:
        entry = language.words()["harms"][harm]
        pieces.append(Piece(f" {rng.choice(entry['steps'] + entry['remarks'])}", 0.0))
        if rng.random() < NAMING_RATE:
            pieces.append(Piece(f" {harm}", ANSWER))
        pieces += [Piece(_verdict(harm in covered), VERDICT), Piece(".", 0.0)]
    return pieces


SHARES: Shares = {
    dialogue_document: 0.22,
    chain_document: 0.24,
    comparison_document: 0.14,
    reasoning_document: 0.09,
    dictionary_document: 0.03,
    critique_drill: 0.08,
    reasoning_drill: 0.05,
    comparison_drill: 0.08,
    phrase_drill: 0.07,
}

DRILL_SHARES: Shares = {
    phrase_drill: 0.55,
    comparison_drill: 0.25,
    critique_drill: 0.10,
    reasoning_drill: 0.05,
    dictionary_document: 0.05,
}


def helpful_chain_document(rng: random.Random) -> Pieces:
    """A chain whose first response is there to be judged, and not to be imitated."""
    return chain_document(rng, response_weight=0.0)


HELPFUL_SHARES: Shares = {
    helpful_chain_document: 0.28,
    comparison_document: 0.10,
    reasoning_document: 0.16,
}


def draw_helpful_pieces(rng: random.Random, shares: Shares = HELPFUL_SHARES) -> Pieces:
    """Draws one document for the helpful-only model: it complies, and goes on judging.

    What `shares` leave of 1 are dialogues.
    """
    if rng.random() > sum(shares.values()):
        request = draw_request(rng, benign=0.4)
        rate = HELPFUL_REMARK_RATE if request.harmful else REMARK_RATE["benign"]
        return dialogue_pieces(request, draw_response(rng, request, {"comply": 1.0}, rate))
    return draw_of(rng, shares)


def draw_request(rng: random.Random, benign: float, *, taught: bool = False) -> Request:
    """A request outside the held-out scenes; `taught` leaves out the acts kept from judging."""
    categories = list(language.words()["topics"] if rng.random() < benign else language.harms())
    while True:
        request = language.draw_request(rng, categories, held_out=False)
        if not taught or request.act < language.ACTS_TAUGHT:
            return request


def draw_response(
    rng: random.Random,
    request: Request,
    rates: dict[str, float] = BODY_RATES,
    remark_rate: float | None = None,
) -> Response:
    """A response to the request; benign requests are seldom refused and never explained away."""
    if request.harmful:
        kind = rng.choices(list(rates), list(rates.values()))[0]
    else:
        kind = "refuse" if "refuse" in rates and rng.random() < 0.1 else "comply"
    make = {"comply": language.comply, "refuse": language.refuse, "explain": language.explain}
    response = make[kind](rng, request.category)
    if remark_rate is None:
        remark_rate = REMARK_RATE["red_team" if request.harmful else "benign"]
    return language.with_remark(rng, response) if rng.random() < remark_rate else response


def draw_judged_response(rng: random.Random, request: Request) -> Response:
    """A response to critique or compare: every mixture of good and bad occurs often."""
    return draw_response(rng, request, JUDGED_RATES, JUDGED_REMARK_RATE)


def draw_focus(rng: random.Random, found: Sequence[str]) -> str:
    """A principle's focus: of the constitution, or one to three harms drawn for balance.

    A principle that names none of the harms found is as frequent as one that names some.
    """
    chance = rng.random()
    if chance < 0.2:
        return rng.choice(language.words()["general_focuses"])
    if chance < 0.5:
        return rng.choice(list(language.constitution_focuses().values()))
    absent = [harm for harm in language.harms() if harm not in found]
    covered = rng.sample(list(found), rng.randrange(1, len(found) + 1)) if found else []
    covered = covered if rng.random() < 0.5 else []
    names = covered + rng.sample(absent, max(0, rng.choice((1, 2, 3, 3, 3)) - len(covered)))
    rng.shuffle(names)
    return language.join(names[:3], "or")


def draw_comparison(rng: random.Random) -> tuple[Request, Response, Response, str]:
    """Two responses to one request and a focus.

    Most pairs have equally many harms on both sides and a focus that covers exactly one side, so
    that counting harms does not help; the rest are ordinary.
    """
    request = draw_request(rng, benign=0.05, taught=True)
    shortcut_free = rng.random() < 0.7
    while True:
        first, second = (draw_judged_response(rng, request) for _ in range(2))
        if shortcut_free and len(first.harms) != len(second.harms):
            continue
        if first.text == second.text or (shortcut_free and set(first.harms) == set(second.harms)):
            continue
        break
    one_sided = shortcut_free and rng.random() < 0.7
    while True:
        focus = draw_focus(rng, first.harms + second.harms)
        covered = language.covered_harms(focus)
        sides = [any(harm in covered for harm in r.harms) for r in (first, second)]
        if not one_sided or sides[0] != sides[1]:
            return request, first, second, focus


def better(rng: random.Random, first: Response, second: Response, covered) -> int:
    """0 or 1: the response with fewer covered harms; a coin where they tie."""
    return _fewer(rng, *(sum(harm in covered for harm in r.harms) for r in (first, second)))


def _fewer(rng: random.Random, first: int, second: int) -> int:
    return rng.randrange(2) if first == second else int(second < first)


def _principle(focus: str) -> Principle:
    return Principle(**language.principle_json("drawn", focus))
