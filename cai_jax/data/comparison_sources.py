"""The sources that a preference model is trained on and measured by, each by its name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cai_jax.data import readers, schema
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.comparisons import FittedPairs
from cai_jax.data.schema import Comparison
from cai_jax.errors import InputError

RECORD_FILE = "comparisons.jsonl"
TRAINING = "training"  # all that is trained on together; no source is called so


class Source(NamedTuple):
    """The comparisons of one file or step."""

    name: str
    trained: bool  # whether they are trained on, or held out
    weight: float  # of each in the loss
    fitted: FittedPairs


def read_sources(
    paths: Sequence[Sequence[Path]],
    weights: Sequence[float],
    read: Callable[[Path], list[Comparison]],
    fit: Callable[[Sequence[Comparison]], FittedPairs],
) -> list[Source]:
    """All sources: those to train on, in their order, then the held-out ones.

    A source has the name of its path, with "_" behind it where that is taken.

    Args:
        paths: of the sources to train on, and of the held-out ones.
        weights: of the sources to train on; none: all 1.
        read: gives the comparisons of a path.
        fit: makes token pairs of comparisons.
    """
    found = []
    for trained, group in zip((True, False), paths):
        taken = {TRAINING}
        for number, path in enumerate(group):
            name = readers.name_of(path)
            while name in taken:
                name += "_"
            taken.add(name)
            weight = float(weights[number]) if trained and weights else 1.0
            fitted = fit(read(path))
            pairs = [pair._replace(weight=weight) for pair in fitted.pairs]
            found.append(Source(name, trained, weight, fitted._replace(pairs=pairs)))
    return found


def read_file(path: Path, fields: Mapping[str, str], bad: BadRecords) -> list[Comparison]:
    """The comparisons of a step's folder, or of a file of any format."""
    if path.is_dir():
        return schema.read_records(path / RECORD_FILE, Comparison, bad)
    return readers.read_comparisons(path, fields, bad)


def check(sources: Sequence[Source], longest: int, vocab_size: int) -> None:
    """Refuses sources that a model cannot be trained on.

    Raises:
        InputError: nothing to train on fits into `longest` tokens, or a token is none of the
            model's.
    """
    trained = [source.fitted for source in sources if source.trained]
    if not any(fitted.pairs for fitted in trained):
        raise InputError(
            "comparisons: expected pairs that fit, found none "
            f"({sum(fitted.dropped for fitted in trained)} are longer than {longest} tokens); "
            "raise sequence_length"
        )
    texts = (text for source in sources for pair in source.fitted.pairs for text in pair[1:3])
    largest = max(map(max, texts))
    if largest >= vocab_size:
        raise InputError(
            f"model: its tokenizer gives id {largest}, but its vocabulary has only "
            f"{vocab_size} entries; the folder's files do not belong together"
        )
