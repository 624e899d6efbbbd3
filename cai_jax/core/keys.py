"""Random keys: what a record samples depends on the seed, the step's name and the record alone."""

from __future__ import annotations

import typing
import zlib

if typing.TYPE_CHECKING:
    import jax


def base_key(seed: int, name: str) -> jax.Array:
    """The key of step `name` under `seed`; fold the record index or the iteration into it.

    The name enters by its CRC-32, which is the same in every process (`hash` of a str is not).
    """
    import jax
    import numpy as np

    return jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(name.encode())))
