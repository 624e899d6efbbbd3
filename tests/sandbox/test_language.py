import random
from collections import Counter

from cai_jax.sandbox import corpus, language, oracle


def test_the_oracle_agrees_with_how_each_response_was_made():
    rng = random.Random(0)
    for _ in range(2000):
        request = corpus.draw_request(rng, benign=0.4)
        response = corpus.draw_response(rng, request)
        verdict = oracle.judge(request.text, response.text)
        assert verdict.harms == response.harms
        assert (verdict.evasive, verdict.explains, verdict.broken) == (
            response.kind == "refuse",
            response.kind == "explain",
            False,
        )
        assert verdict.helpful == (response.kind == "comply")


def test_every_request_has_one_subject():
    rng = random.Random(1)
    categories = [*language.harms(), *language.words()["topics"]]
    for category in categories:
        for held_out in (False, True):
            request = language.draw_request(rng, [category], held_out=held_out)
            assert oracle.subject_of(request.text) == category
            assert request.held_out == held_out
    assert len(language.harms()) == len(language.words()["topics"]) == 12


def test_about_an_eighth_of_the_scenes_is_held_out():
    slots = language.words()["slots"]
    acts = [act for entry in language.words()["harms"].values() for act in entry["acts"]]
    scenes = {
        act.format(person=person, object=thing, place=place)
        for act in acts
        for person in slots["person"]
        for thing in slots["object"]
        for place in slots["place"]
    }
    held_out = sum(language.Request("theft", 0, scene, scene).held_out for scene in scenes)
    assert len(scenes) == 48 * 64
    assert 0.10 < held_out / len(scenes) < 0.15


def test_a_constitution_of_four_general_and_twelve_specific_principles():
    covered = [language.covered_harms(f) for f in language.constitution_focuses().values()]
    assert Counter(len(harms) for harms in covered) == {12: 4, 3: 12}
    # Each harm is covered by 4 + 3 of 16 principles.
    assert set(Counter(harm for harms in covered for harm in harms).values()) == {7}


def test_the_laboratorys_revisions_are_as_general_as_the_papers():
    covered = [language.covered_harms(f) for f in language.revision_focuses().values()]
    assert Counter(len(harms) for harms in covered) == {12: 10, 3: 6}
    # Each harm is covered by the ten, and by one or two of the six.
    assert Counter(Counter(h for harms in covered for h in harms).values()) == {12: 6, 11: 6}
    shared = language.constitution_focuses().items() & language.revision_focuses().items()
    assert len(shared) == 4 + 6


def test_critique_and_revision():
    rng = random.Random(2)
    response = language.Response(
        "comply", "theft", "sure, here is how.", "lies", "the earth is flat"
    )
    assert language.critique(response, {"lies"}) == "findings: theft fine, lies wrong."
    assert language.critique(response, {"arson"}) == "findings: theft fine, lies fine."
    assert language.revise(rng, response, {"lies"}).text == "sure, here is how."
    assert language.revise(rng, response, {"arson"}) == response
    revised = language.revise(rng, response, {"theft", "arson"})
    assert (revised.kind, revised.harms) == ("explain", ("lies",))
    assert language.reasoning(response, revised, {"theft"}) == (
        "first: theft wrong, lies fine. second: lies fine."
    )


def test_comparisons_do_not_reward_counting_harms():
    rng = random.Random(3)
    equal = one_sided = 0
    for _ in range(2000):
        _, first, second, focus = corpus.draw_comparison(rng)
        covered = language.covered_harms(focus)
        sides = [any(h in covered for h in r.harms) for r in (first, second)]
        equal += len(first.harms) == len(second.harms)
        one_sided += len(first.harms) == len(second.harms) and sides[0] != sides[1]
    assert 0.7 < equal / 2000 < 0.9
    assert one_sided / equal > 0.6
