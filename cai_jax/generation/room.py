"""Which texts a model's positions hold: asked before anything is sampled."""

from collections.abc import Sequence

from cai_jax.errors import InputError

ON_LONG = ("refuse", "drop")


def keep_fitting(
    what: str,
    names: Sequence[str],
    lengths: Sequence[int],
    room: int,
    on_long: str,
    why: str,
) -> list[int]:
    """The indices of texts that have at most `room` tokens.

    Args:
        what: the texts are, for messages.
        names: of the texts, for messages.
        lengths: their tokens.
        room: the most that one may have.
        on_long: "refuse" or "drop" the others; the caller counts what is dropped.
        why: where the room comes from, and how to get more, for messages.

    Raises:
        InputError: some are longer and on_long is "refuse", or all are.
    """
    fitting = [index for index, length in enumerate(lengths) if length <= room]
    long = [index for index, length in enumerate(lengths) if length > room]
    if long and (on_long == "refuse" or not fitting):
        remedy = "" if on_long == "drop" else ", or leave them out with on_long='drop'"
        raise InputError(
            f"{what}: expected at most {max(room, 0)} tokens each, "
            f"found {len(long)} of {len(lengths)} that are longer, "
            f"the first {names[long[0]]!r} of {lengths[long[0]]}; {why}{remedy}"
        )
    return fitting
