"""What the builders have in common: files of the user's own, and a word on bad records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cai_jax.data.bad_records import BadRecords
from cai_jax.data.rows import read_rows
from cai_jax.errors import InputError


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Reads a local copy of public files; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    # Where TFDS would look for checksums of downloads. Without it, TFDS 4.9.10 asks for a package
    # that it does not declare.
    code_path = None

    def __init__(self, *, source: Path | None = None, bad: BadRecords | None = None, **options):
        """As TFDS's own builders, and two more.

        Args:
            source: the local copy, to prepare the data set from; not needed to read it.
            bad: what becomes of records that cannot be read; None: the first is refused.
            **options: of `tfds.core.GeneratorBasedBuilder`.
        """
        self._source, self._bad = source, bad or BadRecords()
        super().__init__(**options)

    def files(self, source: Path) -> dict[str, Path]:
        """The file of each split in a local copy.

        Raises:
            InputError: there is none.
        """
        raise NotImplementedError

    def example(self, value: Any, where: str) -> dict[str, Any]:
        """The fields of one row.

        Raises:
            InputError: the row is not what the reader of prompts or comparisons expects.
        """
        raise NotImplementedError

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self._source is None:
            raise InputError(f"{self.name}: expected the source of the data set, found none")
        files = self.files(Path(self._source))
        return {split: self._generate_examples(path) for split, path in files.items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        found = False
        for where, number, value in read_rows(path):
            try:
                if isinstance(value, InputError):
                    raise value
                example = self.example(value, where)
            except InputError as error:
                self._bad.add(where, error)
                continue
            found = True
            yield number, example
        if not found:
            raise InputError(f"{path}: expected at least one record, found none that can be read")
