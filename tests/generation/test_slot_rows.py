"""Rows of the slots, against NumPy's loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.generation import slot_rows
from cai_jax.models.cache import Past

B, F, K, H, S, T, L = 5, 3, 2, 4, 40, 8, 3


def drawn(rng, rows, span, by_layer, eight_bits):
    """Keys, values and, in eight bits, their factors."""
    lead = () if by_layer else (L,)

    def of(*shape):
        arrays = [rng.normal(size=(*lead, *shape)).astype(np.float32) for _ in range(2)]
        return tuple(arrays) if by_layer else arrays[0]

    keys, values = of(rows, K, H, span), of(rows, K, span, H)
    scales = (of(rows, K, span), of(rows, K, span)) if eight_bits else None
    return Past(keys, values, None, scales)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize("eight_bits", [True, False])
def test_columns_are_put_where_they_belong(backend, by_layer, eight_bits, monkeypatch):
    rng = np.random.default_rng(0)
    past, new = (drawn(rng, *size, by_layer, eight_bits) for size in ((B, S), (F, T)))
    rows, firsts = np.array([4, 0, 2]), np.array([36, 3, 10])  # four of the first have no place
    expected = jax.tree.map(np.copy, past)

    def put(array, theirs, row, axis):
        array, theirs = (np.moveaxis(x, (row, axis), (0, 1)) for x in (array, theirs))  # views
        for number, (slot, first) in enumerate(zip(rows, firsts)):
            for column in range(T):
                if first + column < S:
                    array[slot, first + column] = theirs[number, column]

    for name, row, axis in (("keys", -4, -1), ("values", -4, -2), ("scales", -3, -1)):
        of_both = (jax.tree.leaves(getattr(x, name)) for x in (expected, new))
        for array, theirs in zip(*of_both, strict=True):
            put(array, theirs, row, axis)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = slot_rows.put(*jax.tree.map(jnp.asarray, (past, new, rows, firsts)), None)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(past))
    )
