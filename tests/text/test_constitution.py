import copy
import json

import pytest

from cai_jax.errors import InputError
from cai_jax.text.constitution import load_constitution

GOOD = {
    "name": "n",
    "provenance": "p",
    "principles": [
        {"id": "a", "critique_request": "c", "revision_request": "r", "comparison": "o"},
        {"id": "b", "critique_request": "c", "revision_request": "r", "comparison": "o"},
    ],
    "critique_few_shots": ["x"],
    "comparison_few_shots": [{"dialogue": "d", "better": "b", "worse": "w"}],
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
    with pytest.raises(InputError, match="expected a constitution in JSON"):
        load_constitution(tmp_path / "bad.json")
