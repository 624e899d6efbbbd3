"""Llama-3.1-8B on one host of eight GPUs.

    python -m cai_jax.run --config=configs/llama31_8b.py --workdir=runs/llama31_8b \\
        --config.prompts=harmless-base/train.jsonl.gz

The pretrained model is meta-llama/Llama-3.1-8B, the helpful-only one its -Instruct variant, which
refuses much by itself (--config.helpful_model= takes another). Both ask for a licence on the hub.

Hardware: one host of eight H100 of 80 GB; parameters and batches split over all,
and for sampling heads and hidden units.
Memory: computed: at most 43 GiB on each device.
Time: computed: about 4 h for 42,496 prompts of 100 tokens, without the time of collectives.
Expected: critiques that are to the point, labels well above chance, an SL-CAI that explains where
the helpful-only model complied.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](
        model="meta-llama/Llama-3.1-8B",
        helpful_model="meta-llama/Llama-3.1-8B-Instruct",
        hardware="h100",
        mesh=(1, 8, 1),
        sampling_mesh=(1, 1, 8),
        batch_size=64,
        rows=16,
        pairs=8,
        ppo={"prompts_per_iteration": 32, "minibatches": 4},
    )
