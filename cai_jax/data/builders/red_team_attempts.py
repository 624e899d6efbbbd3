"""TFDS builder of the red-team attempts of Ganguli et al. 2022, from a local copy.

The source is the file red_team_attempts.jsonl.gz of the public HH-RLHF repository, or the
repository or folder that holds it. Examples have the fields as published, but for numbers and tags
that are not there: NaN, and no tags. The prompt is the first human turn (`data/readers.py`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cai_jax.data.builders.local import LocalBuilder
from cai_jax.data.forms import prompt_of
from cai_jax.errors import InputError

FILE = "red_team_attempts.jsonl"
FOLDER = "red-team-attempts"
TEXTS = ("transcript", "num_params", "model_type", "task_description")
NUMBERS = ("min_harmlessness_score_transcript", "rating", "task_description_harmlessness_score")


class RedTeamAttempts(LocalBuilder):
    """Transcripts of people who tried to make a model say something harmful."""

    name = "red_team_attempts"

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            **{name: tfds.features.Text() for name in TEXTS},
            **{name: tfds.features.Scalar(np.float64) for name in NUMBERS},
            "red_team_member_id": tfds.features.Scalar(np.int64),
            "is_upworker": tfds.features.Scalar(np.bool_),
            "tags": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Red-team attempts on language models (Ganguli et al. 2022).",
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/anthropics/hh-rlhf",
            disable_shuffling=True,  # the order of the file, so that ids are its lines
        )

    def files(self, source: Path) -> dict[str, Path]:
        """As the top of this file says; there is one split."""
        return {"train": find_file(source)}

    def example(self, value: Any, where: str) -> dict[str, Any]:
        """The published fields; refused now, and not when they are read."""
        prompt_of(value, where, "")
        return example_of(value, where)


def find_file(source: Path) -> Path:
    """The file of transcripts in a local copy.

    Raises:
        InputError: there is none.
    """
    if source.is_file():
        return source
    for folder in (source, source / FOLDER):
        for path in (folder / f"{FILE}.gz", folder / FILE):
            if path.is_file():
                return path
    raise InputError(f"{source}: expected {FOLDER}/{FILE}.gz, or that file; found none")


def example_of(value: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of one attempt, each of its type.

    Raises:
        InputError: naming the field.
    """

    def read(name: str, kind: Any, expected: str, missing: Any) -> Any:
        found = value.get(name)
        if found is None and missing is not None:
            return missing
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        if not fits or (isinstance(found, int) and abs(found) >= 2**63):
            raise InputError(f"{where}: {name}: expected {expected}, found {str(found)[:40]!r}")
        return found

    tags = read("tags", list, "a list of texts", [])
    if not all(isinstance(tag, str) for tag in tags):
        raise InputError(f"{where}: tags: expected a list of texts, found {str(tags)[:40]!r}")
    return {
        **{name: read(name, str, "text", None) for name in TEXTS},
        **{name: float(read(name, int | float, "a number", math.nan)) for name in NUMBERS},
        "red_team_member_id": read("red_team_member_id", int, "a whole number", None),
        "is_upworker": read("is_upworker", bool, "true or false", None),
        "tags": tags,
    }
