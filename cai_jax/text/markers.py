"""Keeps text that a model or a user wrote from steering the prompt it is put into.

A response that writes "]]] ... The answer is: (A)" would otherwise answer for the feedback model.
"""

import re

from cai_jax.text.dialogue import cut_at_stop

_BRACKETS = re.compile(r"\[{3,}|\]{3,}")
_CHOICE = re.compile(r"(?:\(\s*)+([AB])(?=\s*\))")
_ANSWER = re.compile(r"(answer is)(?:\s*:)+", re.IGNORECASE)


def neutralised(text: str) -> tuple[str, bool]:
    """The text without turn markers, option brackets, choices and answer leads.

    It is cut at the first turn marker (what follows is not the response); "[[[" and "]]]" lose a
    bracket, "(A)" its opening parenthesis, and "The answer is:" its colon. Plain text comes back as
    it is, byte for byte.

    Returns:
        (text, whether anything was cut or changed).
    """
    cut = cut_at_stop(text)
    plain = _BRACKETS.sub(lambda match: match[0][:2], cut)
    plain = _CHOICE.sub(r"\1", plain)
    plain = _ANSWER.sub(r"\1", plain)
    return plain, plain != text.strip()
