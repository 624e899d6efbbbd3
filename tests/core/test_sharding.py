import math

import jax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cai_jax.core import hlo_costs, mesh, sharding
from cai_jax.errors import InputError
from cai_jax.models import cache, transformer
from cai_jax.models.config import ModelConfig

SHAPE = dict(vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=32)
B = ("data", "fsdp")
COUNT = jax.ShapeDtypeStruct((), "int32")


def abstract(tied: bool):
    config = ModelConfig(**SHAPE, tied_embeddings=tied)

    def init(key):
        return transformer.add_score_head(transformer.init_params(config, key), config)

    return jax.eval_shape(init, jax.random.key(0))


def names(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.array_name(path): leaf.shape for path, leaf in flat}


def test_every_array_of_the_model_is_split_as_written_here():
    found = {name: sharding.spec_for(name, shape) for name, shape in names(abstract(False)).items()}
    assert found == {
        "embedder/embedding": P("tensor", "fsdp"),
        "unembedder/kernel": P("fsdp", "tensor"),
        "layers/attention/query": P(None, "fsdp", "tensor", None),
        "layers/attention/key": P(None, "fsdp", "tensor", None),
        "layers/attention/value": P(None, "fsdp", "tensor", None),
        "layers/attention/out": P(None, "tensor", None, "fsdp"),
        "layers/attention_norm/scale": P(),
        "layers/mlp/gate": P(None, "fsdp", "tensor"),
        "layers/mlp/up": P(None, "fsdp", "tensor"),
        "layers/mlp/down": P(None, "tensor", "fsdp"),
        "layers/mlp_norm/scale": P(),
        "final_norm/scale": P(),
        "score_head/kernel": P(),
    }


def test_what_tensor_splits_is_split_along_heads_hidden_units_and_vocabulary():
    """The size on that axis, read off the shapes: a swapped spec would split D or H."""
    for name, shape in names(abstract(False)).items():
        spec = sharding.spec_for(name, shape)
        if "tensor" in spec:
            assert shape[spec.index("tensor")] in (24, 4, 2, 32), name
        if "fsdp" in spec:
            assert shape[spec.index("fsdp")] == SHAPE["width"], name


def test_the_cache_is_split_over_rows_and_heads():
    config = ModelConfig(**SHAPE)
    made = jax.eval_shape(lambda: cache.init_cache(config, 8, 6))
    found = {name: sharding.spec_for(name, shape) for name, shape in names(made).items()}
    assert found.pop("length") == P()
    assert found == {
        "keys": P(None, B, "tensor", None, None),
        "values": P(None, B, "tensor", None, None),
        "valid": P(B, None),
    }
    shapes = names(made)
    for name, spec in found.items():
        assert shapes[name][spec.index(B)] == 8
        if "tensor" in spec:
            assert shapes[name][spec.index("tensor")] == SHAPE["kv_heads"]


def test_a_rule_matches_the_end_of_a_name_and_whole_words_only():
    assert sharding.spec_for("0/mu/layers/mlp/gate", (2, 16, 32)) == P(None, "fsdp", "tensor")
    assert sharding.spec_for("batch/tokens", (8, 16)) == P(B)
    assert sharding.spec_for("count", ()) == P()
    for name in ("layers/mlp/gates", "my_mlp/gate", "layers/mlp/gate/inner", "monkeys"):
        with pytest.raises(KeyError, match=f"no rule for array '{name}'"):
            sharding.spec_for(name, (2, 16, 32, 1, 1))


def test_an_array_that_does_not_divide_is_refused_by_name_and_axis():
    made = mesh.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 4}))
    with pytest.raises(InputError) as error:
        sharding.tree_shardings(abstract(True), made)
    assert "attention/key (2, 16, 2, 4): axis 2 of size 2 does not divide over 4" in str(
        error.value
    )


def test_batches_are_split_over_data_and_fsdp():
    made = mesh.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 2}))
    assert sharding.batch_parts(made) == 4
    placed = jax.device_put(jax.numpy.zeros((8, 3)), sharding.batch_sharding(made))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    assert sharding.replicated(made).is_fully_replicated


def test_lora_factors_are_split_as_the_sides_of_their_projections():
    from cai_jax.models import lora

    config = lora.default_config()
    config.rank = 3
    trained, _ = jax.eval_shape(
        lambda params: lora.split(params, config, jax.random.key(0)), abstract(False)
    )
    sizes = {"fsdp": {SHAPE["width"]}, "tensor": {4, 2, 32}}
    factors = {name: shape for name, shape in names(trained).items() if "adapter" in name}
    assert len(factors) == 14
    for name, shape in factors.items():
        spec = sharding.spec_for(name, shape)
        (axis,) = [axis for axis in spec if axis]
        assert shape[spec.index(axis)] in sizes[axis], name
        projection = sharding.spec_for(
            f"layers/{'mlp' if 'mlp' in name else 'attention'}/{name.split('/')[-2]}", (1,) * 4
        )
        # The same mesh axis splits that side of the projection itself.
        assert axis in projection
        # Its moments, whose names end alike, too; Adafactor's rows of them are whole.
        assert sharding.spec_for(f"0/mu/{name}", shape) == spec
        assert sharding.spec_for(f"0/v_row/{name}", shape[:-1]) == P()


def test_the_table_of_arrays_has_bytes_and_specs_with_the_largest_first():
    made = mesh.make_mesh(ConfigDict({"data": 1, "fsdp": 4, "tensor": 2}))
    tree = {"mlp": {"up": jax.ShapeDtypeStruct((2, 16, 32), "float32")}, "count": COUNT}
    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        sharding.tree_shardings(tree, made),
    )
    lines = [line.split() for line in sharding.array_table(placed).splitlines()]
    assert lines == [
        ["512", "mlp/up", "float32[2,16,32]", "None,", "fsdp,", "tensor"],
        ["4", "count", "int32[]", "whole", "on", "every", "device"],
        ["516", "bytes", "on", "each", "device"],
    ]


def test_rows_stay_split_where_a_program_is_told_its_mesh():
    """Told its mesh, a gradient gathers the weights; left alone, it exchanges activations."""
    made = mesh.make_mesh(ConfigDict({"data": 1, "fsdp": 8, "tensor": 1}))
    config = ModelConfig(**SHAPE, tied_embeddings=True, scan_unroll=1)
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    shardings = sharding.tree_shardings(params, made)
    rows = sharding.batch_sharding(made)
    tokens = jax.ShapeDtypeStruct((64, 64), "int32", sharding=rows)

    def loss(params, tokens):
        hidden, _ = transformer.forward(params, config, tokens)
        return jax.numpy.sum(hidden.astype("float32") ** 2)

    def sent(function):
        gradient = jax.jit(function, in_shardings=(shardings, rows), out_shardings=shardings).lower(
            params, tokens
        )
        return hlo_costs.Module(gradient.compile().as_text()).costs()

    told = sent(sharding.on_mesh(jax.grad(loss), made))
    alone = sent(jax.grad(loss))
    size = 4 * sum(math.prod(shape) for shape in names(params).values())
    # Gathered forward and backward, 7/8 each; added up, twice that, since a CPU has no
    # reduce-scatter; and the norms' scales and a few numbers besides.
    assert told.sent < 1.1 * 4 * size * 7 / 8
    assert alone.sent > 10 * told.sent
    assert sharding.on_mesh(loss, mesh.make_mesh(mesh.default_config())) is loss
