"""Stop strings, matched on the decoded text, wherever token boundaries fall."""

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]


def find_stop(ids: Sequence[int], stops: Sequence[str], decode: Decode) -> tuple[str, int] | None:
    """Where the first stop string ends a text.

    Args:
        ids: the tokens of the text.
        stops: none of them empty.
        decode: tokens to text; more tokens must only add to it, but for an unfinished character.

    Returns:
        (the text before the stop, how many tokens complete the stop), or None without a stop.
    """
    if not stops or not any(stop in decode(ids) for stop in stops):
        return None
    # The fewest tokens whose text has a stop: a bisection, since more tokens keep it.
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        text = decode(ids[:middle])
        if any(stop in text for stop in stops):
            high = middle
        else:
            low = middle + 1
    text = decode(ids[:low])
    return text[: min(text.find(stop) for stop in stops if stop in text)], low


def stop_tokens(stops: Sequence[str], tokenizer: Any) -> tuple[list[int], bool]:
    """The tokens that are a whole stop string, and whether that is every stop string.

    The decode loop ends a row at these by itself; for the others somebody must read the text.
    """
    ids = []
    for stop in stops:
        encoded = tokenizer.encode(stop)
        if len(encoded) == 1 and stop in tokenizer.decode(encoded):
            ids.append(encoded[0])
    return ids, len(ids) == len(stops)
