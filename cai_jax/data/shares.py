"""What a training reads, by shares: each host makes tokens of its part of a file, to learn how long
they are, and tells the others. So all know how to pack and order the whole; of the other parts a
host reads and tokenizes those records alone whose rows of a batch it fills.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cai_jax import hosts
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.rows import Unread
from cai_jax.errors import InputError

Make = Callable[[list[Any]], tuple[list[list[Any]], Counter[str]]]


class Place(NamedTuple):
    """Where an item comes from: an example or a pair, of which a record may make several."""

    share: Share
    row: int  # of the file, from 0
    number: int  # among the items of its record


class Share:
    """A file of which this host has made a part; `known` is what all hosts know of all items."""

    def __init__(
        self,
        path: Path,
        rows: Iterable[Unread],
        make: Make,
        know: Callable[[Any], Sequence[Any]],
        bad: BadRecords,
    ):
        """Reads and makes this host's part of the rows; all hosts must call.

        Args:
            path: of the file, for messages.
            rows: all of them; their values are records.
            make: of records, the items of each, and counts of what was done to them.
            know: of an item, what is to be known of it, as JSON has it.
            bad: what becomes of rows that hold no record; afterwards it has those of all hosts.

        Raises:
            InputError: on every host the one that is first in the file; or the hosts do not read
                the same file.
        """
        self._make, all_rows = make, list(rows)
        count, before = len(all_rows), len(bad.found)
        own = hosts.share(count)
        self._others = {row.number: row for row in all_rows[: own.start] + all_rows[own.stop :]}

        def of_this_host() -> dict[str, Any]:
            good = list(bad.good(all_rows[own]))
            items, counts = make([record for _, record in good])
            self._made = {row.number: of for (row, _), of in zip(good, items, strict=True)}
            known = [(row, list(map(know, of))) for row, of in self._made.items()]
            return {"rows": count, "known": known, "counts": counts, "bad": bad.found[before:]}

        parts = hosts.gathered(of_this_host)
        if any(part["rows"] != count for part in parts):
            found = ", ".join(str(part["rows"]) for part in parts)
            raise InputError(f"{path}: expected the same rows on every host, found {found} of them")
        bad.found[before:] = [found for part in parts for found in part["bad"]]
        self.counts = sum((Counter(part["counts"]) for part in parts), Counter[str]())
        records = [of for part in parts for of in part["known"]]
        self.records = len(records)
        self.known = [
            (Place(self, row, number), *facts)
            for row, items in records
            for number, facts in enumerate(items)
        ]

    def rows(self, wanted: Iterable[int]) -> dict[int, list[Any]]:
        """The items of some rows, by row: those that this host has, and others made now."""
        wanted = set(wanted)
        others = sorted(wanted - self._made.keys())
        items, _ = self._make([self._others[row].value() for row in others])
        return dict(zip(others, items)) | {row: self._made[row] for row in wanted - {*others}}


def items(places: Sequence[Place]) -> list[Any]:
    """The items at these places, in their order."""
    rows: dict[Share, set[int]] = {}
    for place in places:
        rows.setdefault(place.share, set()).add(place.row)
    made = {share: share.rows(wanted) for share, wanted in rows.items()}
    return [made[share][row][number] for share, row, number in places]
