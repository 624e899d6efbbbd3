"""Mean and standard deviation of a preference model's scores, kept beside its weights.

Scores have no zero and no unit of their own: only differences on the same prompt are trained. With
the statistics of a reference set, (score - mean) / std means the same for every model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cai_jax import hosts
from cai_jax.errors import InputError

FILE = "score_statistics.json"


class ScoreStatistics(NamedTuple):
    """Of the scores of single texts, both responses of every comparison."""

    mean: float
    std: float  # above 0

    def normalised(self, scores: np.ndarray) -> np.ndarray:
        """Scores in standard deviations from the mean of the reference set."""
        return (np.asarray(scores, np.float64) - self.mean) / self.std


def write(model_folder: Path, scores: np.ndarray, sources: Sequence[str]) -> ScoreStatistics:
    """Writes the statistics of `scores` into a model's folder.

    Args:
        model_folder: where the model's config.json is.
        scores: of all texts of the reference set, at least one.
        sources: what the set is called, for the reader of the file.
    """
    values = np.asarray(scores, np.float64)
    # Scores that are all the same have no unit: 1 keeps them as they are.
    found = ScoreStatistics(float(values.mean()), float(values.std()) or 1.0)
    content = {**found._asdict(), "texts": values.size, "sources": list(sources)}
    if hosts.is_first():
        (model_folder / FILE).write_text(json.dumps(content, indent=2) + "\n")
    return found


def read(model_folder: Path) -> ScoreStatistics:
    """Reads what `write` wrote.

    Raises:
        InputError: the folder has no statistics, or none that can be divided by.
    """
    path = Path(model_folder) / FILE
    if not path.is_file():
        raise InputError(
            f"{path}: expected the statistics of the model's scores, found none; they are written "
            "by the preference step"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = ScoreStatistics(float(content["mean"]), float(content["std"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected mean and std, numbers: {error}") from None
    if not (np.isfinite(found.mean) and 0 < found.std < np.inf):
        raise InputError(f"{path}: std: expected a number above 0, found {found.std}")
    return found
