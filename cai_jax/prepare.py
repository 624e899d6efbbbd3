"""Prepares a TFDS data set from a local copy of public files: nothing is downloaded.

    python -m cai_jax.prepare --dataset=hh_rlhf/harmless-base --source=HH_RLHF_REPOSITORY
    python -m cai_jax.prepare --dataset=red_team_attempts --source=red_team_attempts.jsonl.gz

A config then reads "tfds:hh_rlhf/harmless-base:train" where it reads prompts or comparisons.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.command_line import Parser
from cai_jax.core.configuration import nearest
from cai_jax.data.bad_records import ON_BAD_RECORD, BadRecords
from cai_jax.errors import InputError, exits_on_input_error

# Data set -> its configs, by the builders' own names (data/builders/).
DATASETS = {
    "hh_rlhf": (
        "harmless-base",
        "helpful-base",
        "helpful-online",
        "helpful-rejection-sampled",
    ),
    "red_team_attempts": (),
}


def names() -> list[str]:
    """What --dataset takes."""
    return [
        f"{dataset}/{config}" if config else dataset
        for dataset, configs in DATASETS.items()
        for config in configs or ("",)
    ]


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the files, checks every record, and writes ArrayRecord files."""
    parser = Parser(prog="python -m cai_jax.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(names())}")
    parser.add_argument("--source", required=True, type=Path, help="the file, or its repository")
    parser.add_argument(
        "--data_dir", default=os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets",
        help="where prepared data sets are; TFDS_DATA_DIR names another default",
    )  # fmt: skip
    parser.add_argument(
        "--on_bad_record", choices=ON_BAD_RECORD, default="refuse", help="or count and list them"
    )
    options = parser.parse_args(arguments)
    if options.dataset not in names():
        raise InputError(
            f"--dataset: unknown data set {options.dataset!r}; {nearest(options.dataset, names())}"
        )
    if not options.source.exists():
        raise InputError(f"--source={options.source}: expected a file or folder, found none")
    for line in prepare(
        options.dataset,
        options.source,
        Path(options.data_dir).expanduser(),
        BadRecords(options.on_bad_record),
    ):
        print(line)


def prepare(dataset: str, source: Path, data_dir: Path, bad: BadRecords) -> list[str]:
    """Writes a data set, whole or not at all.

    Args:
        dataset: one of `names()`.
        source: a local copy of its files.
        data_dir: the data set's folder is made below it.
        bad: what becomes of records that cannot be read.

    Returns:
        Lines to print: each split with its size and reference, and how many records are bad.

    Raises:
        InputError: it is there already; a record that cannot be read; no such files.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _builder(dataset, source=source, data_dir=str(data_dir), bad=bad)
    folder = Path(str(builder.data_dir))
    builder.files(source)  # refuses, before anything is made, what has none
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it, or give another --data_dir")
    try:
        # TFDS wants a folder for downloads though there are none, and talks of them.
        with tempfile.TemporaryDirectory() as none, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=none)
    except (OSError, ValueError) as error:
        # TFDS wraps what a generator raises: the user's mistake is what it began with.
        found: BaseException | None = error
        while found is not None and not isinstance(found, InputError):
            found = found.__cause__ or found.__context__
        if found is None and isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written: {error}") from None
        raise (found or error) from None
    lines = [
        f"tfds:{dataset}:{name}  {split.num_examples:,} examples"
        for name, split in builder.info.splits.items()
    ]
    for name, count in bad.report(folder).items():
        lines.append(f"{name}: {count}" + (f", listed in {folder}" if count else ""))
    return lines


def _builder(dataset: str, **options: Any) -> Any:
    name, _, config = dataset.partition("/")
    if name == "hh_rlhf":
        from cai_jax.data.builders.hh_rlhf import HhRlhf

        return HhRlhf(config=config, file_format="array_record", **options)
    from cai_jax.data.builders.red_team_attempts import RedTeamAttempts

    return RedTeamAttempts(file_format="array_record", **options)


if __name__ == "__main__":
    main()
