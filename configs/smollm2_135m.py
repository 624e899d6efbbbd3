"""SmolLM2-135M on a laptop: every step of the method on real prompts, small and slow.

    python -m cai_jax.run --config=configs/smollm2_135m.py --workdir=runs/smollm2_135m \\
        --config.prompts=harmless-base/train.jsonl.gz

The pretrained model is HuggingFaceTB/SmolLM2-135M, the helpful-only one its -Instruct variant (a
few hundred MB from the hub; --config.model= and --config.helpful_model= take folders too).

Hardware: a laptop: 8 cores, 16 GB, no accelerator (assumed: 0.5 TFLOP/s, 50 GB/s).
Memory: computed: at most 9 GiB on each device.
Time: computed: about 11 h for 500 prompts of 100 tokens.
Expected: formats and counts as with larger models. A model of this size seldom criticises to the
point; do not read the texts as a result.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](
        model="HuggingFaceTB/SmolLM2-135M",
        helpful_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        hardware="laptop",
        limit=500,
        batch_size=8,
        rows=2,
        pairs=1,
        ppo={"iterations": 50, "prompts_per_iteration": 4, "minibatches": 4},
    )
