"""What a step that samples has finished outlasts its process: blocks of records.

    STEP/unfinished/blocks/00000002.jsonl   the records of the third block
                           00000002.json    written last: their hash, and the counts up to there

What a record becomes depends on the seed and on itself, so the rest may be made by another process.
On several hosts, which all have all records, the first writes them and says which are there.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cai_jax import hosts
from cai_jax.core import artifact

BLOCKS = "blocks"

Item = TypeVar("Item")
Record = TypeVar("Record")


def kept_in_blocks(
    folder: Path,
    counts: Counter[str],
    items: Sequence[Item],
    size: int,
    make: Callable[[Sequence[Item]], Iterable[Record]],
    write: Callable[[Path, Iterable[Record]], Any],
    read: Callable[[Path], list[Record]],
    first: int = 0,
) -> list[Record]:
    """The records of all items, `size` items at a time, of which each block is `kept`.

    Args:
        folder, counts, write, read: as `kept`.
        items: what `make` makes records of, a block at a time.
        size: items in a block.
        make: the records of some items; adds to `counts`.
        first: the number of the first block, where the step has others before.
    """
    records: list[Record] = []
    for number, start in enumerate(range(0, len(items), size), start=first):
        part = items[start : start + size]
        records += kept(folder, number, counts, functools.partial(make, part), write, read)
    return records


def kept(
    folder: Path,
    number: int,
    counts: Counter[str],
    make: Callable[[], Iterable[Record]],
    write: Callable[[Path, Iterable[Record]], Any],
    read: Callable[[Path], list[Record]],
) -> list[Record]:
    """The records of a block: read if an interrupted run finished it, else made, and kept.

    Args:
        folder: of the step.
        number: of the block, from 0; blocks come in order.
        counts: what the step has counted up to this block, and after it up to its end.
        make: makes the records, and adds to `counts`. A block whose file is damaged is made again.
        write, read: a file of records; the first host alone writes.
    """
    path = folder / artifact.UNFINISHED / BLOCKS / f"{number:08d}.jsonl"
    end: dict[str, Any] = {}
    try:
        end = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        good = artifact.fingerprint(path) == end["hash"]
    except (OSError, ValueError, KeyError):
        good = False
    if hosts.first_says(good):
        counts.clear()
        counts.update(end["counts"])
        return read(path)
    records = list(make())
    if hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, records)
        end = {"hash": artifact.fingerprint(path), "counts": dict(counts)}
        artifact.write_json(path.with_suffix(".json"), end)
    return records
