"""The sources that are trained on and measured by where pairs are compared, each by its name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax.data import comparisons, readers, schema
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.comparisons import Compared, TokenPair
from cai_jax.data.examples import Render
from cai_jax.data.packing import check_on_long
from cai_jax.data.rows import Unread
from cai_jax.data.schema import Comparison
from cai_jax.data.shares import Share
from cai_jax.data.tokenization import check_ids
from cai_jax.errors import InputError

RECORD_FILE = "comparisons.jsonl"
TRAINING = "training"  # all that is trained on together; no source is called so


class Source(NamedTuple):
    """The comparisons of one file or step."""

    name: str
    trained: bool  # whether they are trained on, or held out
    weight: float  # of each in the loss
    pairs: list[Compared]
    truncated: int  # pairs whose dialogue lost its beginning
    dropped: int  # pairs left out


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
    """All sources of a step, as pairs that fit into `longest` tokens; all hosts must call.

    Those to train on come first. A source has the name of its path, with "_" behind it where that
    is taken. `render` gives the prompt of a dialogue.

    Raises:
        InputError: nothing to train on fits, a token is none of the model's, or a record is bad and
            `bad` does not leave it out.
    """

    def make(records: list[Comparison]) -> tuple[list[list[TokenPair]], Counter[str]]:
        made = comparisons.fit_pairs(records, model.tokenizer, render, longest, config.on_long)
        texts = (text for of in made[0] for pair in of for text in (pair.a, pair.b))
        check_ids(map(max, texts), model.config.vocab_size)
        return made

    found = []
    for role in ("comparisons", "held_out"):
        trained, taken = role == "comparisons", {TRAINING}
        for number, path in enumerate(paths(inputs, role)):
            name = readers.name_of(path)
            while name in taken:
                name += "_"
            taken.add(name)
            weight = float(config.weights[number]) if trained and config.weights else 1.0
            share = Share(path, find(path, config.fields), make, comparisons.facts, bad)
            if not path.is_dir():
                readers.check_some(share.records, path, "comparison", bad)
            pairs = [Compared(*known)._replace(weight=weight) for known in share.known]
            counts = share.counts["truncated"], share.counts["dropped"]
            found.append(Source(name, trained, weight, pairs, *counts))
    if not any(source.pairs for source in found if source.trained):
        raise InputError(
            "comparisons: expected pairs that fit, found none "
            f"({sum(source.dropped for source in found if source.trained)} are longer than "
            f"{longest} tokens); raise sequence_length"
        )
    return found


def find(path: Path, fields: Mapping[str, str]) -> Iterator[Unread]:
    """The rows of a step's folder, or of a file of any format, as comparisons."""
    if path.is_dir():
        return schema.find_records(path / RECORD_FILE, Comparison)
    return readers.find_comparisons(path, fields)
