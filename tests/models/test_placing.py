"""Arrays put together on devices: the right bytes at the right place, each read once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.core import sharding as table
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


def test_kernels_are_split_as_the_table_of_all_arrays_says():
    groups = {"gate": "mlp", "up": "mlp", "down": "mlp"}
    for name, spec in placing.KERNELS.items():
        if name == "unembedding":
            assert spec == table.spec_for("unembedder/kernel", (4, 4))
            assert spec[::-1] == tuple(table.spec_for("embedder/embedding", (4, 4)))
        else:
            stacked = f"layers/{groups.get(name, 'attention')}/{name}"
            assert (None, *spec) == tuple(table.spec_for(stacked, (1,) * (len(spec) + 1)))


def test_a_gathered_kernel_is_whole_along_fsdp_and_its_gradient_is_split():
    devices = sharding(P()).mesh
    split = NamedSharding(devices, placing.KERNELS["gate"])
    kernel = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), split)

    def product(kernel, other):
        return jnp.sum(placing.gathered(kernel, "gate") * other)

    told = table.on_mesh(lambda k: (placing.gathered(k, "gate"), jax.grad(product)(k, k)), devices)
    whole, gradient = jax.jit(told)(kernel)
    assert np.array_equal(whole, kernel) and np.array_equal(gradient, kernel)
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 4)}
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(4, 4)}
    assert placing.gathered(kernel, "gate") is kernel  # not told a mesh
