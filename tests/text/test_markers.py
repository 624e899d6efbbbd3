import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.text.dialogue import STOPS
from cai_jax.text.markers import neutralised


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
    ],
)
def test_markers_lose_their_force_and_plain_text_stays(text, expected):
    assert neutralised(text) == ((text, False) if expected is None else (expected, True))


fragments = st.sampled_from(
    ["[", "]", "[[[", "]]]", "(", ")", "A", "B", " ", "answer", " is", ":", "\n\n", "Human:"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments, max_size=14).map("".join))
def test_no_mixture_of_markers_survives(text):
    plain, _ = neutralised(text)
    for marker in ("[[[", "]]]", "(A)", "(B)", "answer is:", *STOPS):
        assert marker not in plain
    assert neutralised(plain) == (plain, False)
