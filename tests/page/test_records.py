from cai_jax.data.schema import Answer, Asked, Chain, Comparison, Round, Turn
from cai_jax.page.evaluation import elo_plot, judgements_table
from cai_jax.page.records import answers_view, chain_view, comparison_view

ASKED = (
    Asked("harm", True, -0.25, -1.5, "first"),
    Asked("tone", False, -2.0, -0.125, "second"),
)
DIALOGUE = (Turn("human", "q?"),)


def view(asked, p_a=0.75, **changes):
    fields = {"principle": None, "logp_a": -0.3, "logp_b": -1.3, "reasoning": "first\n\nsecond"}
    record = Comparison("1", DIALOGUE, "x", "y", p_a, "f", **(fields | changes), asked=asked)
    return comparison_view(record)


def lines(of):
    return [f"{part['label']}: {part.get('text', part.get('principle'))}" for part in of["parts"]]


def test_every_question_is_shown_with_its_principle_placement_answer_and_reasoning():
    assert lines(view(ASKED)) == [
        *("Human: q?", "Response A: x", "Response B: y", "Soft label: P(A is better) = 0.750"),
        *("Principle: harm", "Reasoning: first"),
        "Answer 1: log P( (A)) = -0.250, log P( (B)) = -1.500; response A stood at (A)",
        *("Principle: tone", "Reasoning: second"),
        "Answer 2: log P( (A)) = -2.000, log P( (B)) = -0.125; response A stood at (B)",
    ]
    assert [part["label"] for part in view(ASKED)["parts"] if part.get("rule")] == ["Principle"] * 2


def test_one_principle_stands_above_its_questions():
    shown = lines(view(ASKED[:1] * 2, principle="harm"))
    assert shown[1] == "Principle: harm" and shown.count("Principle: harm") == 1


def test_one_question_is_shown_as_before_questions_were_kept():
    changes = {"principle": "harm", "reasoning": "hm", "a_is_first": True}
    assert view(ASKED[:1], **changes) == view((), **changes)
    assert lines(view((), **changes))[-1] == (
        "Answer: log P( (A)) = -0.300, log P( (B)) = -1.300; response A stood at (A)"
    )


def test_the_preferred_response_and_the_soft_label():
    for p_a, group, preferred in ((0.75, "A is better", [1]), (0.2, "B is better", [2])):
        found = view((), p_a)
        parts = found["parts"]
        assert [i for i, part in enumerate(parts) if part.get("tags")] == preferred
        assert found["group"] == group and parts[4]["share"] == p_a
        assert found["measures"] == {"P(A is better)": p_a, "confidence": max(p_a, 1 - p_a)}
    assert view((), 0.5)["group"] == "even"
    assert not any(part.get("tags") for part in view((), 0.5)["parts"])


def test_a_revision_is_held_against_the_text_before_it():
    rounds = (Round("p", "bad", "new words"), Round("q", "fine", "new  words\n"))
    found = chain_view(Chain("c", DIALOGUE, "old words", rounds))
    assert lines(found) == [
        *("Human: q?", "Response: old words"),
        *("Principle 1: p", "Critique 1: bad", "Revision 1: new words"),
        *("Principle 2: q", "Critique 2: fine", "Revision 2: new  words\n"),
    ]
    revisions = [part for part in found["parts"] if "base" in part]
    assert [(part["base"], part["tags"]) for part in revisions] == [
        (1, []),
        (4, [["unchanged", ""]]),
    ]
    assert found["group"] == "revised once" and found["title"] == "q?"
    assert chain_view(Chain("c", DIALOGUE, "a", rounds[:1] * 2))["group"] == "revised once"
    assert chain_view(Chain("c", DIALOGUE, "new words", rounds))["group"] == "left as it was"


def test_answers_have_their_verdicts():
    verdict = {"harms": ["theft"], "helpful": True, "evasive": True, "score": 0.123456}
    answer = Answer("a", "red_team", "rl", DIALOGUE, "yes", "stop", verdict)
    found = answers_view([answer, answer])
    assert found["group"] == "red team" and len(found["parts"]) == 3
    assert found["parts"][1]["tags"] == [
        *(["theft", "bad"], ["helpful", ""], ["evasive", "bad"], ["score 0.123", ""]),
    ]


def test_how_a_step_judged():
    counts = {"position_bias": -0.0123, "records": 3, "accuracy": 0.75}
    page = judgements_table({"one": counts, "<other>": {"accuracy": 0.5}})
    assert "probability of whatever stands at (A), less 1/2" in page and "records" not in page
    assert '<th scope="row">one</th><td>-0.0123</td><td>0.75</td>' in page
    assert '<th scope="row">&lt;other&gt;</th><td>–</td><td>0.5</td>' in page
    assert judgements_table({"one": {"records": 3}}) == "" == judgements_table({})


def test_models_are_placed_by_their_elo_unless_there_are_too_many_to_name():
    def models(count):
        of = {"harmlessness_elo": 1.0, "helpfulness_elo": 2.0, "intervals": {}}
        return {"models": {f"model-{i}": of for i in range(count)}}

    assert elo_plot(models(1)) == elo_plot(models(9)) == ""
    assert elo_plot(models(8)).count("model-") == 8
