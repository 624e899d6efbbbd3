"""TFDS builder of the comparisons of HH-RLHF (Bai et al. 2022a), from a local copy.

The source is a copy of the public repository, with <config>/train.jsonl.gz and test.jsonl.gz, or
the folder of one config, or a single file, which then is the split that its name says (test, if it
has "test" in it, else train). Examples have the texts as published, in the published order; the
prompt that two dialogues share is found when they are read (`data/readers.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cai_jax.data.builders.local import LocalBuilder
from cai_jax.data.forms import comparison_of
from cai_jax.errors import InputError

CONFIGS = {
    "harmless-base": "Red-team dialogues; the better response is the less harmful one.",
    "helpful-base": "Requests for help; responses of a 52B context-distilled model.",
    "helpful-online": "Requests for help; responses of models under online training.",
    "helpful-rejection-sampled": "Requests for help; the best of 16 samples by a preference model.",
}
SPLITS = ("train", "test")
FIELDS = ("chosen", "rejected")


class HhRlhf(LocalBuilder):
    """Pairs of dialogues of which people found `chosen` the better one."""

    name = "hh_rlhf"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in CONFIGS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"HH-RLHF: {self.builder_config.description}",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in FIELDS}),
            homepage="https://github.com/anthropics/hh-rlhf",
            disable_shuffling=True,  # the order of the file, so that ids are its lines
        )

    def files(self, source: Path) -> dict[str, Path]:
        """As the top of this file says."""
        return find_files(source, self.builder_config.name)

    def example(self, value: Any, where: str) -> dict[str, str]:
        """The two dialogues; refused now, and not when they are read."""
        comparison_of(value, where, "")
        return {name: value[name] for name in FIELDS}


def find_files(source: Path, config: str) -> dict[str, Path]:
    """The file of each split that is there.

    Raises:
        InputError: there is none.
    """
    if source.is_file():
        return {"test" if "test" in source.name else "train": source}
    folder = source / config if (source / config).is_dir() else source
    found: dict[str, Path] = {}
    for split in SPLITS:
        for ending in (".jsonl.gz", ".jsonl"):
            if (folder / f"{split}{ending}").is_file():
                found.setdefault(split, folder / f"{split}{ending}")
    if not found:
        raise InputError(
            f"{source}: expected {config}/train.jsonl.gz or test.jsonl.gz, as in the public "
            "repository, or one file; found none"
        )
    return found
