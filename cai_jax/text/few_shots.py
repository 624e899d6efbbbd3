"""Lays out a constitution's few-shot examples under a principle (paper section 4.1)."""

from cai_jax.errors import InputError
from cai_jax.text.constitution import ComparisonExample
from cai_jax.text.dialogue import parse_dialogue
from cai_jax.text.prompts import CHOICES, multiple_choice


class _Turn:
    def __init__(self, role: str, text: str):
        self.role, self.text = role, text


def comparison_few_shot(example: ComparisonExample, comparison: str, better_is_first: bool) -> str:
    """A multiple choice under a principle's `comparison`, with its answer.

    Raises:
        InputError: the example's dialogue is not in the "\\n\\nHuman: ..." format.
    """
    try:
        turns = [_Turn(role, text) for role, text in parse_dialogue(example.dialogue)]
    except ValueError as error:
        raise InputError(f"comparison few-shot: {error}") from None
    if turns[-1].role == "assistant" and not turns[-1].text:  # the opening of the next response
        turns.pop()
    options = (example.better, example.worse)
    first, second = options if better_is_first else options[::-1]
    return multiple_choice(turns, comparison, first, second) + CHOICES[not better_is_first]


def reasoning_few_shot(text: str, comparison: str) -> str:
    """A chain-of-thought example with its one "{}" filled in."""
    return text.replace("{}", f"{comparison} Options:")
