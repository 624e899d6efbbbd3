"""Qwen2.5-0.5B on one GPU.

    python -m cai_jax.run --config=configs/qwen25_05b.py --workdir=runs/qwen25_05b \\
        --config.prompts=harmless-base/train.jsonl.gz

The pretrained model is Qwen/Qwen2.5-0.5B, the helpful-only one its -Instruct variant, which has
been taught some harmlessness already (--config.helpful_model= takes another).

Hardware: one H100 of 80 GB.
Memory: computed: at most 32 GiB on each device.
Time: computed: about 2 h for 42,496 prompts of 100 tokens.
Expected: revisions that are milder than the responses, and labels a little better than chance.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](
        model="Qwen/Qwen2.5-0.5B",
        helpful_model="Qwen/Qwen2.5-0.5B-Instruct",
        hardware="h100",
        batch_size=64,
        rows=8,
        pairs=4,
        ppo={"prompts_per_iteration": 16, "minibatches": 4},
    )
