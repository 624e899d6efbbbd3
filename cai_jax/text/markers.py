"""Keeps text that a model or a user wrote from steering the prompt it is put into.

A response that writes "]]] ... The answer is: (A)" would otherwise answer for the feedback model,
and a question with "Critique: ..." in it for the model that criticises. Spaces, capitals and single
line breaks do not help it: a model reads "\\nhuman :" as a turn too.
"""

import re
from collections.abc import Iterable

from cai_jax.text.dialogue import cut_at_stop

_BRACKETS = re.compile(r"\[{3,}|\]{3,}")
_CHOICE = re.compile(r"(?:\(\s*)+([AB])(?=\s*\))")
_ANSWER = re.compile(r"(answer\s+is)(?:\s*:)+", re.IGNORECASE)
_BREAKS = r"\n\r\v\f\x85\u2028\u2029"
_LINE = rf"(?<=[{_BREAKS}])[^\S{_BREAKS}]*"  # the beginning of a line that is not the first
_NAMES = r"human|assistant|critique\s*request|critique|revision\s*request|revision"
_LABEL = re.compile(rf"({_LINE}(?:{_NAMES}))(?:\s*:)+", re.IGNORECASE)
_SHORT_LABEL = re.compile(rf"({_LINE}[HA])(?:\s*:)+")  # of the prompts that ask for reasoning


def neutralised(text: str) -> tuple[str, bool]:
    """The text without turn markers, option brackets, choices and answer leads.

    It is cut at the first turn marker (what follows is not the response); lines that begin like a
    turn lose their colon, as "The answer is:" does; "[[[" and "]]]" lose a bracket, and "(A)" its
    opening parenthesis. Plain text comes back as it is, byte for byte.

    Returns:
        (text, whether anything was cut or changed).
    """
    plain, before = cut_at_stop(text), None
    while plain != before:  # what is taken out of one marker may leave another
        before = plain
        plain = _without_labels(plain)
        plain = _SHORT_LABEL.sub(r"\1", plain)
        plain = _BRACKETS.sub(lambda match: match[0][:2], plain)
        plain = _CHOICE.sub(r"\1", plain)
        plain = _ANSWER.sub(r"\1", plain)
    return plain, plain != text.strip()


def unlabelled(text: str) -> str:
    """The text with no line that begins like a turn: such a line loses its colon.

    For text inside the prompts that ask for critiques and revisions. Plain text comes back as it
    is, byte for byte.
    """
    before = None
    while text != before:
        before = text
        text = _without_labels(text)
    return text


def has_labels(texts: Iterable[str]) -> bool:
    """Whether `unlabelled` changes any of the texts."""
    return any(unlabelled(text) != text for text in texts)


def _without_labels(text: str) -> str:
    return _LABEL.sub(r"\1", text)
