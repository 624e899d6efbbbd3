"""The sources that are trained on and measured by where pairs are compared, each by its name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax.data import comparisons, readers, schema
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.comparisons import FittedPairs
from cai_jax.data.examples import Render
from cai_jax.data.packing import check_on_long
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


def check_inputs(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what no step that trains on comparisons can do.

    Args:
        config: of the step; it has on_long, weights, ema_decay, and the numbers of a training.
        inputs: `model`, `comparisons`, `held_out`.

    Raises:
        InputError: no model or comparisons, or a parameter that means nothing.
    """
    for role in ("model", "comparisons"):
        if not inputs.get(role):
            raise InputError(f"inputs: expected model and comparisons, found no {role}")
    for name in ("epochs", "pairs", "accumulate", "sequence_length", "log_every"):
        if config[name] < 1:
            raise InputError(f"{name}: expected at least 1, found {config[name]}")
    check_on_long(config.on_long)
    sources = len(paths(inputs, "comparisons"))
    if config.weights and len(config.weights) != sources:
        raise InputError(
            f"weights: expected one for each of {sources} comparisons, found {config.weights}"
        )
    if any(weight < 0 for weight in config.weights) or (config.weights and not sum(config.weights)):
        raise InputError(f"weights: expected 0 or more, and not all 0, found {config.weights}")
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"ema_decay: expected 0 <= ema_decay < 1, found {config.ema_decay}")


def check_divides(config: ConfigDict, parts: int) -> None:
    """Refuses a batch that does not divide over data x fsdp devices and its own parts."""
    # An axis of -1 shows its size when the devices are there.
    multiple = max(parts, 1) * config.accumulate
    if config.pairs % multiple:
        each = f" for each of {config.accumulate} parts" if config.accumulate > 1 else ""
        raise InputError(
            f"pairs: expected a multiple of {multiple} (data x fsdp devices{each}), "
            f"found {config.pairs}"
        )


def paths(inputs: Mapping[str, Any], role: str) -> list[Path]:
    """The paths of a role that has none, one or a list."""
    value = inputs.get(role) or []
    return [Path(path) for path in (value if isinstance(value, list | tuple) else [value])]


def read(
    config: ConfigDict,
    inputs: Mapping[str, Any],
    model: Any,
    render: Render,
    longest: int,
    bad: BadRecords,
) -> list[Source]:
    """All sources of a step, as pairs of tokens of the model that fit into `longest`.

    `render` gives the prompt of a dialogue.

    Raises:
        InputError: as `check`, or a record is bad and `bad` does not leave it out.
    """
    sources = read_sources(
        [paths(inputs, role) for role in ("comparisons", "held_out")],
        config.weights,
        lambda path: read_file(path, config.fields, bad),
        lambda records: comparisons.fit_pairs(
            records, model.tokenizer, render, longest, config.on_long
        ),
    )
    check(sources, longest, model.config.vocab_size)
    return sources


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
