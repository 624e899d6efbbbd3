"""The method on real prompts and on prompts that the pretrained model writes (paper section 3.2).

    python -m cai_jax.run --config=configs/red_team.py --workdir=runs/red_team \\
        --config.model=MODEL_FOLDER --config.prompts=harmless-base/train.jsonl.gz

The first step, `red_team`, shows the model prompts that people wrote and has it write 10,000 more;
what repeats another is dropped, and stands in runs/red_team/red_team/dropped.jsonl with its reason.
The prompts alone: --steps=red_team. How many: --config.steps.red_team.num_prompts=1000.

Hardware: as configs/hh.py.
Memory: computed: as configs/hh.py; --dry_run has it.
Time: computed: by --dry_run, with --config.hardware=h100 (or another of cai_jax/costs.py).
Expected: with a model of a billion parameters or more, most texts are requests of the kind shown.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](generated_prompts=10_000)
