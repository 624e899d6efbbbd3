import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.data.choices import read_choices
from cai_jax.errors import InputError

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
OFFICIAL = SHARED / "paper/official/evals"
KINDS = {
    "prompt": "Is it?\n (A) Yes\n (B) No\n (C) Perhaps\nThe answer is:",
    "corrects": [" (B)"],
    "incorrects": [" (A)", " (C)"],
}
PAIR = {
    "prompt": "\n\nHuman: q\n\n\nChoose. Options:\n (A) [[[a\nb]]]\n (B) [[[c]]]\n\nThe answer is:",
    "corrects": [" (B)"],
    "incorrects": [" (A)"],
    "text_correct": "\n\nHuman: q\n\nAssistant: c",
    "text_incorrect": "\n\nHuman: q\n\nAssistant: a\nb",
}

LETTERS = (" (A)", " (B)", " (C)", "(A)")


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_options_contexts_and_texts(tmp_path):
    kinds, pair = read_choices(write(tmp_path / "f.jsonl", KINDS, PAIR))
    assert (kinds.id, kinds.options, kinds.correct) == ("f-0", (" (A)", " (B)", " (C)"), 1)
    assert [kinds.wording(i) for i in range(3)] == ["Yes", "No", "Perhaps"]
    assert kinds.context == "Is it?" and kinds.texts == ()
    # The texts stand in the order of the options, whichever is right.
    assert [text[-1] for text in pair.texts] == ["b", "c"] and pair.correct == 1
    other = PAIR | {"corrects": [" (A)"], "incorrects": [" (B)"]}
    other |= {"text_correct": PAIR["text_incorrect"], "text_incorrect": PAIR["text_correct"]}
    (swapped,) = read_choices(write(tmp_path / "g.jsonl", other))
    assert swapped.texts == pair.texts and swapped.correct == 0
    assert len(read_choices(tmp_path / "f.jsonl", limit=1)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (KINDS | {"corrects": []}, "corrects: expected one option, found []"),
        (KINDS | {"corrects": ["(B)"]}, "corrects, incorrects: expected at least two options"),
        (KINDS | {"incorrects": [" (A)", " (D)"]}, "without a gap"),
        (KINDS | {"incorrects": " (A)"}, "incorrects: expected a list"),
        (KINDS | {"prompt": 3}, "prompt: expected str, found '3'"),
        (KINDS | {"prompt": "Is it?\n (A) Yes"}, "expected a text that ends in 'The answer is:'"),
        (KINDS | {"prompt": "\n (A) \n (B) \nThe answer is:"}, "line for the option (C)"),
        (KINDS | {"corects": []}, "unknown field 'corects'"),
        ({"prompt": "x", "corrects": []}, "field 'incorrects' is missing"),
        (PAIR | {"text_correct": None}, "field 'text_correct' is missing"),
        (PAIR | {"text_correct": "c"}, "text_correct: expected a dialogue"),
        (PAIR | {"text_incorrect": "\n\nHuman: z\n\nAssistant: a\nb"}, "expected the dialogue of"),
        (PAIR | {"text_incorrect": "\n\nHuman: q\n\nAssistant: z"}, "prompt has at (A), found 'z'"),
        (PAIR | {"corrects": [" (A)"], "incorrects": [" (B)"]}, "that the prompt has at (A)"),
        ([1], "expected an object"),
    ],
)
def test_malformed_lines_are_refused_with_file_line_and_field(tmp_path, line, message):
    path = write(tmp_path / "f.jsonl", KINDS, line)
    with pytest.raises(InputError) as error:
        read_choices(path)
    assert message in str(error.value) and str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one question"):
        read_choices(write(tmp_path / "f.jsonl"))


@pytest.mark.parametrize(
    ("name", "count", "contexts", "answers"),
    [
        ("438HHHEvaluations", 438, 188, {0: 228, 1: 210}),
        ("HarmfulVsEthical", 254, 254, {0: 127, 1: 127}),
        (
            "HarmfulnessClassification",
            287,
            287,
            {0: 31, 1: 33, 2: 21, 3: 45, 4: 32, 5: 47, 6: 30, 7: 27, 8: 21},
        ),
    ],
)
def test_the_papers_own_files(name, count, contexts, answers):
    path = OFFICIAL / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"the paper's official evaluations are not at {OFFICIAL}")
    questions = read_choices(path)
    assert len(questions) == count and len({q.context for q in questions}) == contexts
    assert Counter(question.correct for question in questions) == answers
    assert all(bool(question.texts) == name.startswith("438") for question in questions)
    if name == "HarmfulnessClassification":
        assert {question.wording(7) for question in questions} == {"Bullying or Harrassment"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(LETTERS),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([KINDS, PAIR]),
    st.dictionaries(st.sampled_from(sorted(PAIR) + ["x"]), VALUES, max_size=2),
)
def test_no_line_breaks_the_reader(tmp_path_factory, line, changes):
    path = write(tmp_path_factory.mktemp("choices") / "f.jsonl", line | changes)
    try:
        (question,) = read_choices(path)
    except InputError as error:
        assert str(error).startswith(f"{path}:1: ") and len(str(error).splitlines()) == 1
    else:
        assert 0 <= question.correct < len(question.options)
