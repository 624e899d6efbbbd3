"""The files of records that a language model is trained on, as examples that fit a row."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import packing, rows, schema
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.examples import Example, Length, Render, make_examples, weighted_texts
from cai_jax.data.shares import Share
from cai_jax.data.tokenization import check_ids
from cai_jax.errors import InputError

RECORD_FILES = ("chains.jsonl", "demonstrations.jsonl", "documents.jsonl")
COUNTS = ("truncated", "dropped", "empty", "lost_tokens")


def read(
    config: ConfigDict, data: Path | Sequence[Path], model: Any, render: Render, bad: BadRecords
) -> tuple[list[Length], dict[str, int]]:
    """The examples of all records, in their order, and COUNTS; all hosts must call.

    Args:
        config: of the step, with `revisions`, `sequence_length` and `on_long`.
        data: files or step folders.
        model: whose tokens they are to be.
        render: the prompt of a dialogue.
        bad: what becomes of lines that hold no record.

    Raises:
        InputError: a bad record, a token that is none of the model's, or nothing to train on.
    """

    def make(records: list[Any]) -> tuple[list[list[Example]], Counter[str]]:
        counts: Counter[str] = Counter()
        full = []
        for record in records:
            texts = weighted_texts([record], render, config.revisions, model.tokenizer.answer)
            full.append([t for t in texts if any(w and text.strip() for text, w in t.pieces)])
            counts["empty"] += len(texts) - len(full[-1])
        made = iter(make_examples([text for of in full for text in of], model.tokenizer))
        found = []
        for of in full:
            examples = [next(made) for _ in of]
            fitted = packing.fit(examples, config.sequence_length, config.on_long)
            found.append(fitted.examples)
            counts.update({name: getattr(fitted, name) for name in COUNTS if name != "empty"})
        check_ids((int(e.ids.max()) for of in found for e in of), model.config.vocab_size)
        return found, counts

    def facts(example: Example) -> tuple[str, int]:
        return example.record_id, len(example.ids)

    sources = list(map(Path, data if isinstance(data, list | tuple) else [data]))
    shares = []
    for file in (file for source in sources for file in record_files(source)):
        found = schema.find_records(file, record_type(file))
        shares.append(Share(file, found, make, facts, bad))
        if not shares[-1].records:
            raise InputError(f"{file}: expected at least one record, found none")
    lengths = [Length(*known) for share in shares for known in share.known]
    if not lengths:
        raise InputError(f"data {', '.join(map(str, sources))}: expected examples, found none")
    return lengths, {name: sum(share.counts[name] for share in shares) for name in COUNTS}


def record_files(path: Path) -> list[Path]:
    """The files of records of a step's folder; of a file, itself.

    Raises:
        InputError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    found = [path / name for name in RECORD_FILES if rows.exists(path / name)]
    if not found:
        raise InputError(f"{path}: expected {', '.join(RECORD_FILES)}, found none of them")
    return found


def record_type(path: Path) -> type:
    """What the records of a file are, which shows in the first line's fields."""
    values = (row.value for row in rows.read_rows(path))
    first = next((value for value in values if isinstance(value, dict)), {})
    kinds = {"pieces": schema.Document, "rounds": schema.Chain}
    return next((kinds[field] for field in kinds if field in first), schema.Demonstration)
