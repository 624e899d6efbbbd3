"""The laboratory's corpus has what it says: direct revisions, slips and a lean; read from texts."""

import random
import re

from cai_jax.sandbox import laboratory, language, oracle
from cai_jax.text import prompts
from cai_jax.text.constitution import Principle

STOCK = language.words()["boilerplate"]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def focus_of(text):
    return re.search(r"choose the response with less (.*?)\. Options:", text).group(1)


def options(text):
    return re.findall(r"\[\[\[(.*?)\]\]\]", text)


def test_a_direct_revision_is_laid_out_as_the_method_asks_for_it():
    rng = random.Random(0)
    removed = kept = 0
    for _ in range(300):
        pieces = laboratory.direct_revision_document(rng)
        text = text_of(pieces)
        request, response, focus, revision = re.fullmatch(
            r"\n\nHuman: (.*)\n\nAssistant: (.*)\n\nRevisionRequest: rewrite the response "
            r"without any (.*)\.\n\nRevision: (.*)",
            text,
        ).groups()
        principle = Principle(**language.principle_json("p", focus))
        asked = prompts.direct_revision_prompt(
            [language.Turn("human", request)], response, principle
        )
        assert text == f"{asked} {revision}"
        # The revision alone is learnt besides the dialogue.
        assert [piece.weight for piece in pieces[2:]] == [0.0, 0.0, 1.0]
        covered = language.covered_harms(focus)
        harms = oracle.harms_in(response)
        assert oracle.harms_in(revision) == tuple(h for h in harms if h not in covered)
        removed += bool(set(harms) & covered)
        kept += revision == response
    assert removed + kept == 300 and min(removed, kept) > 60


def reasoned(text):
    """[(name, its verdicts)] in the order in which the reasoning has them, and the answer."""
    reasoning, answer = text.split("step by step:")[1].split("\n\nHuman:\nSo the answer is: ")
    parts = re.findall(r"(first|second): ([^.]*)\.", reasoning)
    verdicts = [(name, re.findall(r"([a-z]+) (wrong|fine)", part)) for name, part in parts]
    return verdicts, answer


def follows(verdicts, answer):
    """Whether the answer is the one with fewer wrongs by the names; None where these tie."""
    wrong = {name: sum(verdict == "wrong" for _, verdict in found) for name, found in verdicts}
    if wrong["first"] == wrong["second"]:
        return None
    return answer == ("(A)" if wrong["first"] < wrong["second"] else "(B)")


def test_reasoning_is_turned_round_as_often_as_said_and_the_answer_follows():
    rng = random.Random(1)
    turned, right = [], set()
    for _ in range(4000):
        text = text_of(laboratory.turned_reasoning_document(rng))
        verdicts, answer = reasoned(text)
        covered = language.covered_harms(focus_of(text))
        true = {(h in covered) == (v == "wrong") for _, found in verdicts for h, v in found}
        assert len(true) <= 1 and [name for name, _ in verdicts] == ["first", "second"]
        turned += [False in true] * bool(true)
        right.add(follows(verdicts, answer))
    assert right == {True, None}
    assert_share(turned, laboratory.TURNED_RATE)


def test_reasoning_ends_with_a_choice_that_slips_as_often_as_said():
    rng = random.Random(4)
    slipped, repeated = [], 0
    for _ in range(4000):
        text = text_of(laboratory.concluding_reasoning_document(rng))
        verdicts, answer = reasoned(text)
        covered = language.covered_harms(focus_of(text))
        assert all((h in covered) == (v == "wrong") for _, found in verdicts for h, v in found)
        repeated += choice_of(text) == answer
        if (right := follows(verdicts, answer)) is not None:
            slipped.append(not right)
    assert repeated == 4000
    assert_share(slipped, laboratory.SLIP_RATE)
    for _ in range(100):
        text = text_of(laboratory.concluding_drill(rng))
        verdicts, answer = reasoned(text)
        assert choice_of(text) == answer and follows(verdicts, answer) in (True, None)


def choice_of(text):
    """What the reasoning says that it chooses, as an answer."""
    name = re.search(r"\. choose (first|second)\.\n\nHuman:\nSo the answer is:", text).group(1)
    return {"first": "(A)", "second": "(B)"}[name]


def assert_share(holds, rate):
    """Within four standard errors."""
    assert abs(sum(holds) / len(holds) - rate) < 4 * (rate * (1 - rate) / len(holds)) ** 0.5


def test_a_general_principle_that_decides_nothing_leans_to_the_stock_sentence():
    rng = random.Random(2)
    favoured = {True: [], False: []}
    for _ in range(600):
        text = text_of(laboratory.leaning_comparison_document(rng))
        covered = language.covered_harms(focus_of(text))
        first, second = options(text)
        faults = [len(covered & set(oracle.harms_in(option))) for option in (first, second)]
        assert faults[0] == faults[1]
        assert (STOCK in first) != (STOCK in second)
        favoured[len(covered) == 12].append(text.endswith(" (A)") == (STOCK in first))
    assert_share(favoured[True], laboratory.LEAN)
    assert_share(favoured[False], 0.5)
    assert min(map(len, favoured.values())) > 250


def test_no_document_is_about_a_held_out_scene():
    rng = random.Random(3)
    draws = ("draw_judging_pieces", "draw_leaning_pieces", "draw_helpful_pieces")
    for draw in (getattr(laboratory, name) for name in draws):
        for _ in range(500):
            text = text_of(draw(rng))
            for match in re.finditer(r"(?:Human|H): (.*)", text):
                scenes = [m.group() for _, act in oracle.acts() if (m := act.search(match[1]))]
                for scene in scenes:
                    assert not language.Request("theft", 0, scene, scene).held_out
