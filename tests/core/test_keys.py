import zlib

import jax
import numpy as np

from cai_jax.core.keys import base_key


def numbers(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).tolist()


def test_a_key_is_the_same_in_every_process():
    # Literals: `hash` of the name, say, would give others in each process.
    assert zlib.crc32(b"finetune") == 2_120_591_354
    assert numbers(base_key(0, "finetune")) == numbers(
        jax.random.fold_in(jax.random.key(0), np.uint32(2_120_591_354))
    )
    assert numbers(base_key(0, "finetune")) == [1563873162, 1104790120]


def test_every_step_and_every_seed_has_its_own_key():
    names = ["sl_cai", "rl_cai", "a", "b", ""]
    keys = {tuple(numbers(base_key(seed, name))) for seed in range(5) for name in names}
    assert len(keys) == 25
