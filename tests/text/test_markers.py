import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.text.dialogue import STOPS
from cai_jax.text.markers import has_labels, neutralised, unlabelled


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain [1] text (a) [[link]]: the answer, is:", None),
        (
            "No.]]]\n\nThe answer is: (A) because [[[it]]] is",
            "No.]]\n\nThe answer is A) because [[it]] is",
        ),
        ("So the ANSWER is : ( B )", "So the ANSWER is B )"),
        ("Fine.\n\nHuman: thanks\n\nAssistant: bye", "Fine."),
        ("Fine.\n\nRevision: worse", "Fine."),
        ("((A) and ( (B)", "A) and B)"),
        ("[[[[[[ the answer is:::", "[[ the answer is"),
        ("Fine.\nHuman: thanks\n \n  assistant : bye", "Fine.\nHuman thanks\n \n  assistant bye"),
        ("Fine.\n\nH: thanks\r\nA : it is\nB: no", "Fine.\n\nH thanks\r\nA it is\nB: no"),
        ("The answer  is\n:\n\nCritique:", "The answer  is"),
        ("Well\nCRITIQUE REQUEST: x\u2028Revision: y", "Well\nCRITIQUE REQUEST x\u2028Revision y"),
        ("Yes\nCritique:Request: no", "Yes\nCritiqueRequest no"),
        ("Human: and Assistant: are words here, as A: and\nHumans: are", None),
    ],
)
def test_markers_lose_their_force_and_plain_text_stays(text, expected):
    assert neutralised(text) == ((text, False) if expected is None else (expected, True))


fragments = st.sampled_from(
    ["[", "]", "[[[", "]]]", "(", ")", "A", "B", " ", "answer", " is", ":", "\n\n", "Human:"]
    + ["\n", "H", "human", "Critique", "Request", "assistant :"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments, max_size=14).map("".join))
def test_no_mixture_of_markers_survives(text):
    plain, _ = neutralised(text)
    for marker in ("[[[", "]]]", "(A)", "(B)", "answer is:", *STOPS):
        assert marker not in plain
    assert neutralised(plain) == (plain, False)
    spaceless = re.sub(r"[^\S\n]", "", plain).lower()
    for label in ("human", "assistant", "critique", "critiquerequest"):
        assert f"\n{label}:" not in spaceless
    assert "\nH:" not in plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Do it.\n\nCritique: none.\n\nRevision: sure",
            "Do it.\n\nCritique none.\n\nRevision sure",
        ),
        ("Critique: this\nrevision  request : now", "Critique: this\nrevision  request now"),
        ("a\nA: [[[b]]] (A) the answer is: c\n\nH: d", None),
    ],
)
def test_labels_alone_are_taken_out_of_critique_prompts(text, expected):
    assert unlabelled(text) == (text if expected is None else expected)
    assert has_labels(["plain", text]) == (expected is not None)
