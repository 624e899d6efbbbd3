import copy
import dataclasses
import json
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from cai_jax.errors import InputError
from cai_jax.text.constitution import (
    Constitution,
    Principle,
    constitution_from_json,
    load_constitution,
)

GOOD = {
    "name": "n",
    "provenance": "p",
    "principles": [
        {"id": "a", "critique_request": "c", "revision_request": "r", "comparison": "o"},
        {"id": "b", "critique_request": "c", "revision_request": "r", "comparison": "o"},
    ],
    "critique_few_shots": ["\n\nHuman: x"],
    "comparison_few_shots": [{"dialogue": "\n\nHuman: d", "better": "b", "worse": "w"}],
    "reasoning_few_shots": ["before {} after"],
}


def load(tmp_path, value):
    path = tmp_path / "constitution.json"
    path.write_text(json.dumps(value))
    return load_constitution(path)


def test_a_good_file_loads_and_has_subsets(tmp_path):
    constitution = load(tmp_path, GOOD)
    assert [p.id for p in constitution.principles] == ["a", "b"]
    assert [p.id for p in constitution.subset(["b"]).principles] == ["b"]
    assert constitution.subset([]) == constitution
    with pytest.raises(InputError, match="unknown principle 'c'; it has a, b"):
        constitution.subset(["c"])


IDS = [f"p{n}" for n in range(16)]


def of_ids(ids):
    principles = tuple(Principle(name, "c", "r", "o") for name in ids)
    return Constitution("n", "p", principles, (), (), ())


def drawn(count, seed, ids=IDS):
    return [p.id for p in of_ids(ids).drawn(count, seed).principles]


def test_draws_are_nested_ordered_and_the_seeds_alone():
    assert drawn(0, 3) == drawn(16, 3) == IDS
    for seed in range(20):
        draws = [drawn(count, seed) for count in range(1, 17)]
        assert [len(set(draw)) for draw in draws] == list(range(1, 17))
        for fewer, more in zip(draws, draws[1:]):
            assert set(fewer) < set(more)
        assert all(draw == sorted(draw, key=IDS.index) for draw in draws)
        # The file's order is no part of the draw, and a principle that is gone changes no other.
        assert set(drawn(4, seed, IDS[::-1])) == set(draws[3])
        rest = [name for name in IDS if name not in draws[0]]
        assert set(drawn(4, seed, rest)) == set(draws[4]) - set(draws[0])
    # 1600 draws of 4 out of 16: each principle 400 times, five deviations either way.
    counts = Counter(name for seed in range(1600) for name in drawn(4, seed))
    assert len(counts) == 16 and all(abs(n - 400) < 87 for n in counts.values())


def test_a_draw_of_more_than_there_are_is_refused():
    for count in (-1, 17):
        with pytest.raises(
            InputError, match=rf"num_principles: expected 0 \(all\) to 16.*{count}$"
        ):
            of_ids(IDS).drawn(count, 0)


def drop(field):
    return lambda value: value["principles"][1].pop(field)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v.pop("provenance"), "field 'provenance' is missing"),
        (lambda v: v.update(extra=1), "unknown field 'extra'"),
        (lambda v: v.update(principles=[]), "expected at least one principle, found none"),
        (lambda v: v.update(principles={}), "principles: expected a list"),
        (drop("comparison"), r"principles\[1\]: field 'comparison' is missing"),
        (lambda v: v["principles"][1].update(id="a"), "id 'a' is used twice"),
        (lambda v: v["principles"][0].update(comparison=3), "comparison: expected text, found '3'"),
        (
            lambda v: v["principles"][1].update(comparison="Choose. Options:"),
            r"principles\[1\]: comparison: expected the wording alone, found the marker 'Options:'",
        ),
        (
            lambda v: v["principles"][0].update(critique_request="Critique: c"),
            "critique_request: expected the wording alone, found the marker 'Critique:'",
        ),
        (
            lambda v: v["principles"][0].update(revision_request="r\n\nHuman: s"),
            "revision_request: expected the wording alone, found the marker 'Human:'",
        ),
        (
            lambda v: v["principles"][0].update(comparison="\ud800"),
            "comparison: expected text, found the lone surrogate",
        ),
        (lambda v: v.update(critique_few_shots=["x"]), r"shots\[0\]: expected a dialogue that"),
        (
            lambda v: v["comparison_few_shots"][0].update(dialogue="d"),
            r"comparison_few_shots\[0\]: dialogue: expected a dialogue that begins with",
        ),
        (lambda v: v.update(reasoning_few_shots=["x"]), "expected one '{}' for the principle"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, spoil, message):
    value = copy.deepcopy(GOOD)
    spoil(value)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, value)
    assert "\n" not in str(error.value)
    assert "constitution.json" in str(error.value)


def test_a_missing_or_undecodable_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="found none"):
        load_constitution(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("{")
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match="expected a constitution in JSON"):
            load_constitution(tmp_path / "bad.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def places(value, path=()):
    """The path to everything in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@hypothesis.given(st.sampled_from(list(places(GOOD))), JSON)
@hypothesis.settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_file_it_is_a_constitution_or_refused(path, anything):
    value = {"": copy.deepcopy(GOOD)}
    place = value
    for key in ("", *path)[:-1]:
        place = place[key]
    place[("", *path)[-1]] = anything
    try:
        constitution = constitution_from_json(value[""], "here")
    except InputError as error:
        assert str(error).startswith("here: ")
    else:
        # What is taken can be written again, and is what was given.
        text = json.dumps(dataclasses.asdict(constitution), ensure_ascii=False).encode()
        assert constitution_from_json(json.loads(text), "again") == constitution
