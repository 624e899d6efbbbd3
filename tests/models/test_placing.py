"""Arrays put together on devices: the right bytes at the right place, each read once."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.models import placing

WHOLE = np.arange(5 * 4 * 6, dtype=np.float32).reshape(5, 4, 6)


def sharding(spec):
    devices = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    return NamedSharding(devices, spec)


@pytest.mark.parametrize("layers_together", [1, 2, 5])
@pytest.mark.parametrize(
    ("spec", "parts"), [(None, 1), (P(), 1), (P(None, "fsdp", "tensor"), 4), (P(None, "fsdp"), 2)]
)
def test_every_part_is_read_for_its_devices_and_once(monkeypatch, layers_together, spec, parts):
    monkeypatch.setattr(placing, "PART_BYTES", layers_together * 4 * 6 * 4)
    read = []

    def from_disk(index):
        read.append(tuple((i.start, i.stop) for i in index))
        return WHOLE[index]

    place = None if spec is None else sharding(spec)
    array = placing.put(WHOLE.shape, np.dtype("float32"), place, from_disk, stacked=True)
    assert np.array_equal(array, WHOLE)
    assert len(read) == len(set(read)) == parts * -(-5 // layers_together)
    assert all(stop - start == layers_together for (start, stop), *_ in read)
    sizes = {(c - b) * (e - d) for _, (b, c), (d, e) in read}
    assert sizes == {4 * 6 // parts}
    if place is not None:
        assert array.sharding.is_equivalent_to(place, 3)


def test_an_array_that_is_no_stack_is_read_at_once(monkeypatch):
    monkeypatch.setattr(placing, "PART_BYTES", 1)
    array = placing.put(
        (5, 4, 6), np.dtype("float32"), sharding(P()), WHOLE.__getitem__, stacked=False
    )
    assert np.array_equal(array, WHOLE)


def test_a_stack_may_be_split_by_layers(monkeypatch):
    monkeypatch.setattr(placing, "PART_BYTES", 2 * 4 * 6 * 4)
    array = placing.put(
        (4, 4, 6), np.dtype("float32"), sharding(P("fsdp")), WHOLE.__getitem__, stacked=True
    )
    assert np.array_equal(array, WHOLE[:4])
    assert array.addressable_shards[0].data.shape == (2, 4, 6)
