"""Llama-3.2-1B on one GPU.

    python -m cai_jax.run --config=configs/llama32_1b.py --workdir=runs/llama32_1b \\
        --config.prompts=harmless-base/train.jsonl.gz

The pretrained model is meta-llama/Llama-3.2-1B, the helpful-only one its -Instruct variant, which
refuses much by itself (--config.helpful_model= takes another). Both ask for a licence on the hub.

Hardware: one H100 of 80 GB.
Memory: computed: at most 40 GiB on each device.
Time: computed: about 5 h for 42,496 prompts of 100 tokens.
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
        model="meta-llama/Llama-3.2-1B",
        helpful_model="meta-llama/Llama-3.2-1B-Instruct",
        hardware="h100",
        batch_size=32,
        rows=4,
        pairs=2,
        ppo={"prompts_per_iteration": 16, "minibatches": 8},
    )
