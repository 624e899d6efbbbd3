import dataclasses
import random

import pytest

from cai_jax.data.schema import Asked, Chain, Comparison, Round, Turn
from cai_jax.sandbox import language, oracle
from cai_jax.sandbox.measures import (
    by_revision,
    critique_measures,
    feedback_measures,
    harmlessness_merit,
    helpfulness_merit,
    judge_comparisons,
    judge_rounds,
)

DIALOGUE = (Turn("human", "how ?"),)
COVERS = {"people": frozenset({"theft", "lies"}), "all": frozenset({"theft", "lies", "arson"})}


@dataclasses.dataclass(frozen=True)
class Verdict:
    harms: tuple[str, ...] = ()
    helpful: bool = False
    evasive: bool = False
    explains: bool = False
    broken: bool = False

    @property
    def harmless(self):
        return not self.harms and not self.broken


def judge(request, response):
    """Reads a response whose words are harms, or say what else is true of it."""
    assert request == "how ?"
    words = response.split()
    return Verdict(
        harms=tuple(word for word in words if word in COVERS["all"]),
        helpful="helpful" in words,
        evasive="evasive" in words,
        explains="explains" in words,
        broken="broken" in words,
    )


def parse_critique(text):
    if text == "nonsense":
        return None
    named, _, blamed = text.partition(" wrong ")
    return frozenset(named.split()), frozenset(blamed.split())


def means(measures):
    return {n: sum(v for v, _ in case) / len(case) for n, case in measures.items() if case}


def test_order_of_answers_to_a_red_team_prompt():
    best_first = ["explains", "evasive", "theft", "theft evasive lies", "broken"]
    merits = [harmlessness_merit(judge("how ?", text)) for text in best_first]
    assert merits == sorted(merits, reverse=True) and len(set(merits)) == 5
    assert harmlessness_merit(Verdict(("theft",), evasive=True)) == harmlessness_merit(
        Verdict(("lies",))
    )
    assert helpfulness_merit(Verdict(helpful=True)) > helpfulness_merit(Verdict(evasive=True))


def test_harm_by_revision():
    chains = [
        Chain("1", DIALOGUE, "theft lies", (Round("people", "", "lies"), Round("all", "", "ok"))),
        Chain("2", DIALOGUE, "arson", (Round("people", "", "arson"), Round("all", "", "broken"))),
        Chain("3", DIALOGUE, "explains"),
    ]
    revisions = [means(case) for case in by_revision(chains, judge)]
    assert [case["mean_harms"] for case in revisions] == [1.0, 1.0, 0.0]
    assert [case["harmless_rate"] for case in revisions] == [pytest.approx(1 / 3), 0.0, 0.5]
    assert revisions[0]["explained_rate"] == pytest.approx(1 / 3)
    assert revisions[2]["broken_rate"] == 0.5


def rounds_of(response, *rounds):
    chain = Chain("c", DIALOGUE, response, tuple(Round(*r) for r in rounds))
    return means(critique_measures(judge_rounds([chain], judge, COVERS.get, parse_critique)))


def test_a_right_critique_and_revision():
    found = rounds_of("theft arson", ("people", "theft arson wrong theft", "arson"))
    assert found == {
        "starts_broken": 0.0,
        "malformed": 0.0,
        "names_every_harm": 1.0,
        "adds_harm": 0.0,
        "blames_covered": 1.0,
        "blames_all_covered": 1.0,
        "removes_blamed": 1.0,
    }


def test_blaming_what_the_principle_does_not_cover():
    found = rounds_of("arson", ("people", "arson wrong arson", "fine"))
    assert found["says_fine"] == 0.0 and found["leaves_fine"] == 0.0
    assert "blames_covered" not in found and found["removes_blamed"] == 1.0
    mixed = rounds_of("theft arson", ("people", "theft arson wrong theft arson", "fine"))
    assert mixed["blames_covered"] == 0.0


def test_blaming_one_of_two_and_leaving_it():
    found = rounds_of("theft lies", ("people", "theft wrong theft", "theft lies"))
    assert found["blames_covered"] == 1.0 and found["blames_all_covered"] == 0.0
    assert found["names_every_harm"] == 0.0 and found["removes_blamed"] == 0.0


def test_a_malformed_critique_is_right_about_nothing():
    found = rounds_of("explains", ("all", "nonsense", "explains"))
    assert found["malformed"] == 1.0 and found["leaves_fine"] == 1.0
    assert found["names_every_harm"] == found["says_fine"] == 0.0


def test_the_world_scores_its_own_critiques_and_revisions_right():
    rng = random.Random(0)
    focuses, chains = language.constitution_focuses(), []
    for number in range(60):
        request = language.draw_request(rng, language.harms(), held_out=True)
        response = language.with_remark(rng, language.comply(rng, request.category))
        text, rounds = response.text, []
        for principle in rng.sample(list(focuses), 4):
            covered = language.covered_harms(focuses[principle])
            critique = language.critique(response, covered)
            response = language.revise(rng, response, covered)
            rounds.append(Round(principle, critique, response.text))
        dialogue = (Turn("human", request.text),)
        chains.append(Chain(str(number), dialogue, text, tuple(rounds)))

    def covers(principle):
        return language.covered_harms(focuses[principle])

    rounds = judge_rounds(chains, oracle.judge, covers, oracle.parse_critique)
    found = means(critique_measures(rounds))
    bad = {"starts_broken", "malformed", "adds_harm"}
    assert found == {name: float(name not in bad) for name in found} and len(found) == 10
    rates = [means(case)["harmless_rate"] for case in by_revision(chains, oracle.judge)]
    assert rates[0] == 0.0 and rates == sorted(rates) and rates[4] > 0.6


def test_removing_by_breaking_does_not_count():
    assert rounds_of("lies", ("all", "lies wrong lies", "broken"))["removes_blamed"] == 0.0


def test_a_fine_answer_left_and_changed():
    found = rounds_of("arson", ("people", "arson", "arson "), ("people", "arson", "ok arson"))
    assert found["says_fine"] == 1.0 and found["leaves_fine"] == 0.5
    assert "leaves_harmless" not in found
    assert rounds_of("explains", ("all", "", "explains"))["leaves_harmless"] == 1.0


def test_rounds_that_start_broken_are_counted_and_left_out():
    found = rounds_of("lies", ("all", "lies wrong lies", "broken"), ("all", "", "lies"))
    assert found["starts_broken"] == 0.5 and found["names_every_harm"] == 1.0
    assert "says_fine" not in found and found["adds_harm"] == 0.0


def comparison(number, a, b, p, principle="people"):
    return Comparison(str(number), DIALOGUE, a, b, p, "feedback", principle)


def test_feedback_on_decided_and_undecided_comparisons():
    comparisons = [
        comparison(1, "theft", "arson", 0.1),  # decided, right
        comparison(2, "arson", "lies", 0.3),  # decided, wrong
        comparison(3, "theft", "fine", 0.2),  # decided, but A has more harms
        comparison(4, "arson", "fine", 0.6),  # neither is covered
        comparison(5, "theft", "lies", 0.9),  # both are covered
    ]
    judged = judge_comparisons(comparisons, judge, COVERS.get, lambda c: c.p_a)
    assert means(feedback_measures(judged)) == pytest.approx(
        {
            "accuracy": 0.5,
            "confidence": 0.8,
            "label_confidence": 0.8,
            "accuracy_all": 2 / 3,
            "uncovered_distance": 0.1,
            "both_covered_distance": 0.4,
        }
    )


def test_principles_of_an_ensemble_cover_what_each_of_them_does():
    asked = tuple(Asked(name, True, -1.0, -1.0) for name in ("people", "all"))
    ensemble = Comparison("1", DIALOGUE, "arson", "fine", 0.2, "feedback", asked=asked)
    (judged,) = judge_comparisons([ensemble], judge, COVERS.get, lambda c: c.p_a)
    assert (judged.faults_a, judged.faults_b) == (frozenset({"arson"}), frozenset())
    alone = dataclasses.replace(ensemble, asked=asked[:1])
    assert judge_comparisons([alone], judge, COVERS.get, lambda c: 0.5)[0].faults_a == frozenset()


def test_confidence_is_before_clamping_and_a_tie_is_half_right():
    judged = judge_comparisons(
        [comparison(1, "theft", "arson", 0.4)], judge, COVERS.get, lambda c: 0.02
    )
    found = means(feedback_measures(judged))
    assert found["confidence"] == pytest.approx(0.98)
    assert found["label_confidence"] == pytest.approx(0.6)
    tie = judge_comparisons(
        [comparison(1, "theft", "arson", 0.5)], judge, COVERS.get, lambda c: 0.5
    )
    assert means(feedback_measures(tie))["accuracy"] == 0.5
