"""The paper's own size and numbers: 52B parameters, 182,831 prompts, on 128 chips (v5p-256).

    python -m cai_jax.run --config=configs/paper_52b.py --workdir=runs/paper_52b \\
        --config.prompts=harmless-base/train.jsonl.gz \\
        --config.helpful_prompts=HELPFUL --config.helpful_comparisons=COMPARISONS \\
        --config.model=PRETRAINED --config.helpful_model=HELPFUL_ONLY

The paper's models are not public: give yours. Without them --dry_run counts with a shape of that
size (cai_jax/shapes.py). 42,496 red-team prompts that people wrote, with 140,335 that the
pretrained model writes, make 182,831, and 731,324 revisions; 135,296 helpfulness prompts, two
samples of each, make 270,592 more examples; 182,831 AI labels and 135,296 human ones train the
preference model.

Not as in the paper: learning rates (its pretraining rate is not known), batches of the preference
model and of PPO, the prompts of RL (it had 965,442 more, generated), and the few-shots.

Hardware: 128 chips of TPU v5p: heads and hidden units split over 4, the rest over 32; for
sampling over 16, and batches over 8. They are on 32 hosts, each of which runs the command.
Memory: computed: at most 44 GiB on each device.
Time: computed: about 18 h for the paper's counts, prompts of 100
tokens, without the time of collectives.
Expected: the paper's figures 2, 3, 5 and 8.
Not run by us.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

HH = runpy.run_path(str(Path(__file__).with_name("hh.py")))


def get_config() -> ConfigDict:
    """configs/hh.py with what differs."""
    return HH["get_config"](
        model="shape:paper-52b",
        hardware="v5p",
        mesh=(1, 32, 4),
        sampling_mesh=(8, 1, 16),
        generated_prompts=140_335,
        mix_helpfulness=True,
        batch_size=256,
        rows=1024,
        finetune={"remat": "layer", "accumulate": 8},
        pairs=32,
        ppo={
            "prompts_per_iteration": 64,
            "samples_per_prompt": 1,
            "baseline": "none",
            "minibatches": 1,
        },
    )
