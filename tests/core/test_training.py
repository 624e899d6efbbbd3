from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cai_jax.core import mesh, optimizer, sharding, training


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "embedder": {"embedding": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
        "final_norm": {"scale": jnp.ones(4)},
    }


def test_gradients_are_applied_and_counted(params):
    optimizer = optax.sgd(0.5, momentum=0.9)
    state, _ = training.create_state(params, optimizer, mesh.make_mesh(mesh.default_config()))
    assert int(state.step) == 0
    gradients = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        state = training.apply_gradients(state, gradients, optimizer)
    assert int(state.step) == 2
    # Momentum makes the second step 1.9 of the first: the optimizer's state is carried along.
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(state.params)):
        np.testing.assert_allclose(new, old - 0.5 * (1 + 1.9), rtol=1e-6)


def test_moments_lie_where_their_parameters_lie(params):
    made = optimizer.make_optimizer(optimizer.default_config(), 10)
    device_mesh = mesh.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    state, shardings = training.create_state(params, made, device_mesh)
    spec = sharding.spec_for("embedder/embedding", (8, 4))
    tables = [
        (sharding.array_name(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if leaf.shape == (8, 4)
    ]
    assert [name.split("/")[0] for name, _ in tables] == ["params", *["optimizer_state"] * 2]
    for _, table in tables:
        assert table.sharding.spec == spec
        assert {shard.data.shape for shard in table.addressable_shards} == {(4, 2)}
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
    assert not np.any(np.asarray(tables[1][1])) and not np.any(np.asarray(tables[2][1]))


def test_the_same_updates_on_another_mesh_give_the_same_parameters(params):
    made = optimizer.make_optimizer(optimizer.default_config(), 10)
    gradients = jax.tree.map(
        lambda leaf: jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params
    )
    results = []
    for axes in ((1, 1, 1), (2, 2, 2)):
        device_mesh = mesh.make_mesh(ConfigDict(dict(zip(mesh.AXES, axes))))
        state, shardings = training.create_state(params, made, device_mesh)
        step = jax.jit(
            lambda state, gradients: training.apply_gradients(state, gradients, made),
            out_shardings=shardings,
        )
        for _ in range(2):
            state = step(state, gradients)
        results.append(jax.device_get(state.params))
    for one, eight in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(one, eight, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 16, 8, 16), (2, 128, 4, 128)])
def test_adafactors_state_has_a_place_on_the_mesh(shape):
    """Factored or, where an axis is short, whole: then it lies where its parameters lie."""
    made = optimizer.make_optimizer(
        ConfigDict({**optimizer.default_config(), "optimizer": "adafactor"}), 10
    )
    device_mesh = mesh.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    params = {"layers": {"attention": {"query": jnp.ones(shape)}}}
    state, _ = training.create_state(params, made, device_mesh)
    tables = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.shape == shape]
    assert len(tables) == (0 if shape[1] == 128 else 1)
    spec = sharding.spec_for("attention/query", shape)
    assert all(table.sharding.spec == spec for table in tables)
    ones = jax.tree.map(jnp.ones_like, params)
    state = jax.jit(lambda s, g: training.apply_gradients(s, g, made))(state, ones)
    rate = float(optimizer.make_schedule(optimizer.default_config(), 10)(0))
    found = np.asarray(state.params["layers"]["attention"]["query"])
    np.testing.assert_allclose(found, 1 - rate * 1.01, rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_gradients_summed_over_parts_are_those_of_the_batch(parts):
    """Rows of very different weight: a mean of the parts' means would be another number."""
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        "w": jnp.asarray([100, 0, 1, 2, 0, 3, 0.5, 7], jnp.float32),
    }
    params = {"k": jnp.asarray([0.3, -2.0, 1.0])}
    weight = batch["w"].sum()

    def loss(params, batch):
        total = jnp.sum(batch["w"] * jnp.tanh(batch["x"] @ params["k"]))
        return total / weight, {"total": total, "rows": jnp.float32(batch["w"].size)}

    found, sums = training.summed_gradients(loss, params, batch, parts)
    y = np.tanh(np.asarray(batch["x"]) @ np.asarray(params["k"]))
    w = np.asarray(batch["w"]) / float(weight)
    np.testing.assert_allclose(
        found["k"], (w * (1 - y**2)) @ np.asarray(batch["x"]), rtol=1e-5, atol=1e-6
    )
    assert float(sums["rows"]) == 8
    assert float(sums["total"]) == pytest.approx(
        float(np.sum(np.asarray(batch["w"]) * y)), rel=1e-5
    )


def test_the_first_update_that_is_no_number_is_named_with_its_records_and_the_last_good_one():
    saves = SimpleNamespace(name="pm", last_good="work/pm/unfinished/00000004")
    ids = [[f"r{i}-{n // 2}" for n in range(18 + i)] for i in range(3)]
    good = {"loss": jnp.float32(0.5), "gradient_norm": jnp.float32(2)}
    assert training.fetched([good, good], ids, 7, saves) == [good, good]
    bad = good | {"gradient_norm": jnp.float32(jnp.inf)}
    with pytest.raises(FloatingPointError) as error:
        training.fetched([good, bad, bad], ids, 7, saves)
    named = ", ".join(f"r1-{n}" for n in range(8))
    assert str(error.value) == (
        "pm: update 6: gradient_norm is inf; the last good checkpoint is "
        "work/pm/unfinished/00000004, and nothing was written over it; lower learning_rate, or "
        f"look at records {named} ..."
    )
