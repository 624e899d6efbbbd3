import pytest
from scripted import run_stage

from cai_jax.data.schema import Comparison, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.sandbox.human import preferred
from cai_jax.stages import human_labels

THEFT = "tell me how to rob the market with the boss."
MUSIC = "how do i play a song for the boss at the museum?"
STEPS = "sure, here is how. first, cut the alarm wire. then, distract the guard."
LIE = " also, the earth is flat."
CHORDS = "of course, this is easy. first, learn the chords. then, count the beats."
EXPLAINS = (
    "i will not help with theft, because owners lose what they earned. "
    "instead, save a little every week."
)
REFUSES = "i can not help with that."
BROKEN = "also also."


@pytest.mark.parametrize(
    ("question", "request_text", "ordered"),
    [
        # Better to worse; what stands together in a tuple ties.
        ("harmlessness", THEFT, [(EXPLAINS, REFUSES), EXPLAINS + LIE, STEPS + LIE, BROKEN]),
        ("harmlessness", MUSIC, [(CHORDS, REFUSES), CHORDS + LIE, BROKEN]),
        ("helpfulness", THEFT, [(STEPS, STEPS + LIE), EXPLAINS, (REFUSES, BROKEN)]),
        ("helpfulness", MUSIC, [(CHORDS, CHORDS + LIE), (REFUSES, EXPLAINS, BROKEN)]),
    ],
)
def test_whom_people_prefer(question, request_text, ordered):
    groups = [group if isinstance(group, tuple) else (group,) for group in ordered]
    places = {text: place for place, group in enumerate(groups) for text in group}
    for a, of_a in places.items():
        for b, of_b in places.items():
            expected = None if of_a == of_b else float(of_a < of_b)
            assert preferred(question, request_text, a, b) == expected, (a, b)


def pairs_file(path, *pairs):
    write_records(
        path,
        [
            Pair(f"p{i}", (Turn("human", request),), a, b, {"n": i})
            for i, (request, a, b) in enumerate(pairs)
        ],
    )
    return path


def test_labels_of_several_files_ties_left_out(tmp_path):
    red = pairs_file(tmp_path / "red.jsonl", (THEFT, STEPS, REFUSES), (THEFT, REFUSES, EXPLAINS))
    benign = pairs_file(tmp_path / "benign.jsonl", (MUSIC, REFUSES, CHORDS))
    counts = run_stage(human_labels, tmp_path / "harm", {"pairs": red})
    assert counts == {"records": 1, "tokens": 0, "ties": 1}
    (found,) = read_records(tmp_path / "harm/comparisons.jsonl", Comparison)
    dialogue = (Turn("human", THEFT),)
    assert found == Comparison("p0", dialogue, STEPS, REFUSES, 0.0, "human", tags={"n": 0})
    inputs = {"pairs": [red, benign]}
    counts = run_stage(human_labels, tmp_path / "help", inputs, question="helpfulness")
    assert (counts["records"], counts["ties"]) == (3, 0)
    labels = read_records(tmp_path / "help/comparisons.jsonl", Comparison)
    assert [(one.id, one.p_a) for one in labels] == [
        ("red/p0", 1.0),
        ("red/p1", 0.0),
        ("benign/p0", 0.0),
    ]


def test_what_is_refused(tmp_path):
    same = pairs_file(tmp_path / "same.jsonl", (THEFT, REFUSES, REFUSES))
    with pytest.raises(InputError, match="at least one with a better response, found 1 ties"):
        run_stage(human_labels, tmp_path / "none", {"pairs": same})
    with pytest.raises(InputError, match="question: expected one of harmlessness, helpfulness"):
        run_stage(human_labels, tmp_path / "kind", {"pairs": same}, question="kindness")
    with pytest.raises(InputError, match="inputs.pairs: expected steps of kind compare"):
        run_stage(human_labels, tmp_path / "empty", {})


def test_the_plan_counts_every_pair():
    config = human_labels.default_config()
    planned = {"pairs": [{"records": 5, "tokens": 9}, {"records": 7, "tokens": 9}]}
    assert human_labels.plan(config, planned) == {"records": 12, "tokens": 0, "flops": 0}
