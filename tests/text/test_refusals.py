import pytest

from cai_jax.text.refusals import opens_with_refusal


@pytest.mark.parametrize(
    "response",
    [
        "I can't help with that.",
        "I\u2019m sorry, but I won\u2019t assist with this request.",
        "Sorry, I cannot discuss that here.",
        "I am not able to answer this question.",
        "I'd rather not say.",
        "As a polite machine, I will not help you do that.",
        "  No comment.",
        "Let's talk about something else.",
    ],
)
def test_openings_that_decline(response):
    assert opens_with_refusal(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Sure, here is how.",
        "You can't help everyone, but a kind word goes a long way.",
        "Sorry to hear that! Try a warm bath.",
        "I cannot recommend this soup enough.",
        "Let us begin with the flour.",
    ],
)
def test_openings_that_answer(response):
    assert not opens_with_refusal(response)
