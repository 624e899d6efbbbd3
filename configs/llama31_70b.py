"""Llama-3.1-70B on a TPU pod slice of 64 chips (v5p-128).

    python -m cai_jax.run --config=configs/llama31_70b.py --workdir=runs/llama31_70b \\
        --config.prompts=harmless-base/train.jsonl.gz

The pretrained model is meta-llama/Llama-3.1-70B, the helpful-only one its -Instruct variant, which
refuses much by itself (--config.helpful_model= takes another). Both ask for a licence on the hub.

Hardware: 64 chips of TPU v5p: heads and hidden units split over 8, the rest over 8, which for
sampling is the batch alone. They are on 16 hosts, each of which runs the command.
Memory: computed: at most 59 GiB on each device.
Time: computed: about 12 h for 42,496 prompts of 100 tokens, without the time of collectives.
Expected: as the paper says of its largest models, for a model that began elsewhere.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](
        model="meta-llama/Llama-3.1-70B",
        helpful_model="meta-llama/Llama-3.1-70B-Instruct",
        hardware="v5p",
        mesh=(1, 8, 8),
        sampling_mesh=(8, 1, 8),
        batch_size=128,
        rows=16,
        pairs=8,
        ppo={"prompts_per_iteration": 64, "minibatches": 8},
    )
