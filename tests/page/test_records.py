from cai_jax.data.schema import Asked, Comparison, Turn
from cai_jax.page.evaluation import judgements_table
from cai_jax.page.records import comparison_card

PRINCIPLES = {"harm": "Choose by harm.", "tone": "Choose by tone."}
ASKED = (
    Asked("harm", True, -0.25, -1.5, "first <b>"),
    Asked("tone", False, -2.0, -0.125, "second"),
)


def card(asked, **changes):
    fields = {"principle": None, "logp_a": -0.3, "logp_b": -1.3, "reasoning": "first\n\nsecond"}
    dialogue = (Turn("human", "q?"),)
    return comparison_card(
        Comparison("1", dialogue, "x", "y", 0.75, "feedback", **(fields | changes), asked=asked),
        PRINCIPLES,
    )


def test_every_question_is_shown_with_its_principle_placement_answer_and_reasoning():
    page = card(ASKED)
    assert "2 questions, whose answers are averaged" in page and "P(A is better) = 0.750" in page
    expected = [
        *("harm: Choose by harm.", "first &lt;b&gt;"),
        "log P( (A)) = -0.250, log P( (B)) = -1.500; response A stood at (A)",
        *("tone: Choose by tone.", "second"),
        "log P( (A)) = -2.000, log P( (B)) = -0.125; response A stood at (B)",
    ]
    places = [page.index(text) for text in expected]
    assert places == sorted(places)
    # The joined reasonings and the averaged log-probabilities would say it twice.
    assert "-0.300" not in page and page.count("second") == 1


def test_one_principle_stands_above_its_questions():
    page = card(ASKED[:1] * 2, principle="harm")
    assert page.count("Choose by harm.") == 1


def test_one_question_is_shown_as_before():
    changes = {"principle": "harm", "reasoning": "hm", "a_is_first": True}
    assert card(ASKED[:1], **changes) == card((), **changes)
    assert "log P( (A)) = -0.300, log P( (B)) = -1.300; response A stood at (A)" in card(
        (), **changes
    )


def test_how_a_step_judged():
    page = judgements_table({"position_bias": -0.0123, "records": 3, "accuracy": 0.75}, "step")
    assert "probability of whatever stands at (A), less 1/2" in page and "-0.0123" in page
    assert "accuracy there, ties left out" in page and "records" not in page
    assert judgements_table({"records": 3}, "step") == ""
