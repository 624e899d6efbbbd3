import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cai_jax.core import artifact, checkpoint, mesh


def bits(array) -> bytes:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).tobytes()


@pytest.fixture(scope="module")
def tree():
    key = jax.random.key(3)
    return {
        "params": {
            "kernel": jax.random.normal(key, (8, 4)),
            "half": jax.random.normal(key, (3,), jnp.bfloat16),
            "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        },
        "step": jnp.int32(7),
        "moments": [jnp.arange(3), jnp.ones(2, jnp.uint32)],
        "key": jax.random.fold_in(key, 5),
    }


@pytest.fixture(scope="module")
def saved(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "state"
    checkpoint.save(folder, tree)
    return folder


def test_a_tree_comes_back_bit_for_bit(tree, saved):
    restored = checkpoint.restore(saved, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(restored)):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert bits(new) == bits(old)
    # The key goes on where it was.
    assert jax.random.bits(restored["key"]) == jax.random.bits(tree["key"])


def test_without_a_tree_the_arrays_are_numpy(tree, saved):
    without_key = {name: value for name, value in tree.items() if name != "key"}
    folder = saved.with_name("plain")
    checkpoint.save(folder, without_key)
    restored = checkpoint.restore(folder)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    for old, new in zip(jax.tree.leaves(without_key), jax.tree.leaves(restored)):
        assert (new.dtype, bits(new)) == (old.dtype, bits(old))


def test_a_tree_saved_on_one_mesh_is_restored_on_another(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    wide = mesh.make_mesh(ConfigDict({"data": 2, "fsdp": 4, "tensor": 1}))
    tall = mesh.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 2}))
    placed = jax.device_put(values, NamedSharding(wide, P("fsdp")))
    checkpoint.save(tmp_path / "state", {"kernel": placed})

    target = NamedSharding(tall, P(None, "tensor"))
    abstract = {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=target)}
    restored = checkpoint.restore(tmp_path / "state", abstract)["kernel"]
    assert restored.sharding == target
    assert {shard.data.shape for shard in restored.addressable_shards} == {(8, 2)}
    np.testing.assert_array_equal(np.asarray(restored), values)

    bare = {"kernel": jax.ShapeDtypeStruct((8, 4), np.float32)}
    on_one = checkpoint.restore(tmp_path / "state", bare)["kernel"]
    assert on_one.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(np.asarray(on_one), values)


def test_nothing_is_written_over(tree, saved):
    with pytest.raises(ValueError, match="exist"):
        checkpoint.save(saved, {"kernel": jnp.zeros(2)})
    assert bits(checkpoint.restore(saved, tree)["params"]["kernel"]) == bits(
        tree["params"]["kernel"]
    )


def test_the_same_tree_has_the_same_hash_and_other_bits_another(saved, tree, tmp_path, caplog):
    checkpoint.save(tmp_path / "again", tree)
    assert not caplog.records
    hashes = artifact.file_hashes(saved)
    again = artifact.file_hashes(tmp_path / "again")
    assert artifact.combined_hash(again) == artifact.combined_hash(hashes)
    changed = {name for name in hashes if again[name] != hashes[name]}
    assert changed == set(checkpoint.TIMES)
    other = tree | {"step": tree["step"] + 1}
    checkpoint.save(tmp_path / "other", other)
    assert artifact.fingerprint(tmp_path / "other") != artifact.fingerprint(saved)
