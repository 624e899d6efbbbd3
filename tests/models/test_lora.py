"""LoRA against its closed form, and its adapters against PEFT's own loading where it is there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from cai_jax import checkpoints
from cai_jax.core.training import summed_gradients
from cai_jax.errors import InputError
from cai_jax.models import lora, peft_adapter, transformer, weights

TOKENS = np.array([[5, 9, 40, 7, 3, 80, 21, 11]], np.int32)


def group(**changes) -> ConfigDict:
    config = lora.default_config()
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return checkpoints.load_model(folder)


def with_random_b(trained, seed=3):
    """Factors that do something: a fresh b is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.asarray(rng.normal(size=x.shape, scale=0.1), jnp.float32)
            if path[-1].key == "b"
            else x
        ),
        trained,
    )


def test_a_fresh_adapter_changes_nothing_and_has_pefts_scale(model):
    config = group(rank=3)
    trained, frozen = lora.split(model.params, config, jax.random.key(0))
    assert set(trained) == {"adapter"} and frozen.keys() == model.params.keys()
    for same, first in zip(
        jax.tree.leaves(lora.merged(trained, frozen, config)), jax.tree.leaves(model.params)
    ):
        np.testing.assert_array_equal(same, first)
    factors = trained["adapter"]["layers"]["attention"]["out"]
    assert factors["a"].shape == (2, 2, 8, 3) and factors["b"].shape == (2, 3, 16)
    assert 0.9 / 4 < float(jnp.abs(factors["a"]).max()) <= 1 / 4  # N H = 16 inputs
    again, _ = lora.split(model.params, config, jax.random.key(0))
    other, _ = lora.split(model.params, config, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    assert not np.array_equal(
        factors["a"], lora.at(other, ("adapter", "layers", "attention", "out", "a"))
    )


def test_the_joined_weights_are_base_plus_scaled_product_of_the_targets_alone(model):
    config = group(rank=2, alpha=5.0, targets=("query", "out", "down"))
    trained, frozen = lora.split(model.params, config, jax.random.key(0))
    trained = with_random_b(trained)
    joined = lora.merged(trained, frozen, config)
    layers, base = joined["layers"], model.params["layers"]
    adapter = trained["adapter"]["layers"]
    for (block, name), axes in {
        ("attention", "query"): "ldr,lrnh->ldnh",
        ("attention", "out"): "lnhr,lrd->lnhd",
        ("mlp", "down"): "lfr,lrd->lfd",
    }.items():
        factors = adapter[block][name]
        expected = base[block][name] + 2.5 * np.einsum(axes, factors["a"], factors["b"])
        np.testing.assert_allclose(layers[block][name], expected, atol=1e-6)
        layers[block][name] = base[block][name]
    jax.tree.map(np.testing.assert_array_equal, joined, model.params)


def test_full_rank_reaches_any_change_of_the_weights(model):
    """a = U S^1/2, b = S^1/2 V / scale of a drawn change: the function class of full finetuning."""
    config = group(rank=16, alpha=4.0)
    trained, frozen = lora.split(model.params, config, jax.random.key(0))
    rng = np.random.default_rng(0)
    wanted = jax.tree.map(np.asarray, model.params)
    for path in lora.paths(model.params, tuple(config.targets)):
        array = lora.at(model.params, path)
        change = rng.normal(size=array.shape, scale=0.2)
        layers, inputs, outputs = lora.sides(path[-1], array.shape)
        u, s, v = np.linalg.svd(
            change.reshape(layers, int(np.prod(inputs)), -1), full_matrices=False
        )
        root, missing = np.sqrt(s), 16 - s.shape[-1]
        a = np.pad(u * root[:, None], ((0, 0), (0, 0), (0, missing)))
        b = np.pad(root[..., None] * v, ((0, 0), (0, missing), (0, 0)))
        factors = lora.at(trained["adapter"], path)
        factors["a"] = jnp.asarray(a.reshape(layers, *inputs, 16), jnp.float32)
        factors["b"] = jnp.asarray(b.reshape(layers, 16, *outputs) / 0.25, jnp.float32)
        lora.at(wanted, path[:-1])[path[-1]] = np.asarray(array) + change
    merged = lora.merged(trained, frozen, config)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), merged, wanted)


def test_gradients_are_those_of_the_full_weights_through_the_factors(model):
    """d/da = scale dW b^T and d/db = scale a^T dW, and the base gets none."""
    config = group(rank=3, alpha=6.0, targets=("up",))
    trained, frozen = lora.split(model.params, config, jax.random.key(0))
    trained = with_random_b(trained)

    def loss(params, tokens):
        hidden, _ = transformer.forward(params, model.config, tokens)
        return jnp.sum(jnp.sin(transformer.logits(params, model.config, hidden))), None

    found, _ = jax.jit(
        lambda trained: summed_gradients(
            lambda t, tokens: loss(lora.joined(t, frozen, config), tokens), trained, TOKENS, 1
        )
    )(trained)
    merged = lora.merged(trained, frozen, config)
    full = jax.jit(jax.grad(lambda params: loss(params, TOKENS)[0]))(merged)
    slope = np.asarray(full["layers"]["mlp"]["up"])
    factors = trained["adapter"]["layers"]["mlp"]["up"]
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    expected = {
        "a": 2.0 * np.einsum("ldf,lrf->ldr", slope, factors["b"]),
        "b": 2.0 * np.einsum("ldr,ldf->lrf", factors["a"], slope),
    }
    for side, value in expected.items():
        np.testing.assert_allclose(
            found["adapter"]["layers"]["mlp"]["up"][side], value, rtol=2e-4, atol=1e-4
        )


def test_a_preference_models_head_is_trained_whole(model):
    params = transformer.add_score_head(model.params, model.config)
    trained, frozen = lora.split(params, group(rank=1), jax.random.key(0))
    assert set(trained) == {"adapter", "score_head"} and "score_head" not in frozen
    assert lora.merged(trained, frozen, group(rank=1)).keys() == params.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "lora.rank: expected 0"),
        ({"rank": 2, "alpha": 0.0}, "lora.alpha: expected more than 0, found 0.0"),
        ({"rank": 2, "targets": ("q_proj",)}, "lora.targets: expected some of query.*'q_proj'"),
    ],
)
def test_what_means_nothing_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        lora.check(group(**changes))


def test_a_projection_that_the_model_does_not_have_is_refused(model):
    params = {"layers": {"mlp": {"up": jnp.ones((1, 2, 2))}}}
    with pytest.raises(InputError, match="this model has no projection gate"):
        lora.split(params, group(rank=1, targets=("up", "gate")), jax.random.key(0))


def write_adapter(folder, model, config, *, preference_model=False):
    params = model.params
    if preference_model:
        params = transformer.add_score_head(params, model.config, jax.random.key(5))
    trained, frozen = lora.split(params, config, jax.random.key(0))
    trained = with_random_b(trained)
    peft_adapter.write(folder, model.config, trained, config, "some/base")
    return trained, frozen


def test_an_adapter_folder_has_pefts_names_shapes_and_factors(model, tmp_path):
    config = group(rank=2, alpha=3.0, targets=("query", "out", "gate"))
    trained, _ = write_adapter(tmp_path / "adapter", model, config, preference_model=True)
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["target_modules"] == ["mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj"]
    assert (values["r"], values["lora_alpha"], values["fan_in_fan_out"]) == (2, 3.0, False)
    assert (values["task_type"], values["modules_to_save"]) == ("SEQ_CLS", ["score"])
    arrays = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    sizes = {"self_attn.q_proj": (16, 16), "self_attn.o_proj": (16, 16), "mlp.gate_proj": (16, 24)}
    expected = {"base_model.model.score.weight": (1, 16)}
    for layer in range(2):
        for module, (inputs, outputs) in sizes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            expected |= {f"{name}.lora_A.weight": (2, inputs)}
            expected |= {f"{name}.lora_B.weight": (outputs, 2)}
    assert {name: array.shape for name, array in arrays.items()} == expected
    factors = trained["adapter"]["layers"]["attention"]["out"]
    name = "base_model.model.model.layers.1.self_attn.o_proj"
    np.testing.assert_array_equal(
        arrays[f"{name}.lora_A.weight"], np.asarray(factors["a"][1]).reshape(16, 2).T
    )
    np.testing.assert_array_equal(arrays[f"{name}.lora_B.weight"], np.asarray(factors["b"][1]).T)


# Families whose modules hold several projections, have inputs first, or other names and shapes.
FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24},
    "gpt_neox": {"rotary_pct": 0.5, "use_parallel_residual": True},
    "qwen2": {"num_key_value_heads": 1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 12, "query_pre_attn_scalar": 12},
}
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def write_family(folder, name):
    """A random model of a family, by transformers alone; what is zero at the start is drawn too."""
    import torch
    import transformers

    values = FAMILIES[name] if name == "gpt2" else SHAPE | FAMILIES[name]
    config = transformers.AutoConfig.for_model(
        name, **values | {"vocab_size": 96, "bos_token_id": None, "eos_token_id": 1}
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder


def family_adapter(folder, name):
    """An adapter of all projections of a family: params with it beside, and merged; the config."""
    write_family(folder / "base", name)
    model_config, params = weights.read_folder(folder / "base")
    config = group(rank=3, alpha=7.0)
    trained, frozen = lora.split(params, config, jax.random.key(0))
    trained = with_random_b(trained)
    peft_adapter.write(folder / "adapter", model_config, trained, config, "some/base")
    return lora.joined(trained, frozen, config), lora.merged(trained, frozen, config), model_config


@pytest.mark.parametrize("name", FAMILIES)
def test_the_factors_in_the_file_make_the_merged_weights_in_the_file(name, tmp_path):
    """base + scale B A, module by module, is what the merged model's own folder has."""
    beside, merged, model_config = family_adapter(tmp_path, name)
    # What is trained computes what is saved.
    hidden = [transformer.forward(params, model_config, TOKENS)[0] for params in (beside, merged)]
    np.testing.assert_allclose(*hidden, atol=2e-4)
    (tmp_path / "merged").mkdir()
    weights.write_folder(tmp_path / "merged", model_config, merged)
    base, expected = (load_file(tmp_path / f / "model.safetensors") for f in ("base", "merged"))
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    arrays = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    modules = {key.rpartition(".lora_")[0] for key in arrays}
    assert len(modules) == 2 * len(values["target_modules"])
    for module in modules:
        a, b = (arrays[f"{module}.lora_{side}.weight"] for side in "AB")
        short = module.partition(".0.")[2] or module.partition(".1.")[2]
        rank = values["rank_pattern"].get(short, values["r"])
        alpha = values["alpha_pattern"].get(short, values["lora_alpha"])
        assert len(a) == rank and short in values["target_modules"]
        change = alpha / rank * b @ a
        key = module.removeprefix("base_model.model.") + ".weight"
        change = change.T if values["fan_in_fan_out"] else change
        assert np.abs(change).max() > 0.01
        np.testing.assert_allclose(expected[key], base[key] + change, atol=1e-5)
    assert values["fan_in_fan_out"] == (name == "gpt2")
    assert bool(values["rank_pattern"]) == (name in ("gpt2", "gpt_neox"))


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_what_the_merged_model_of_a_family_does(name, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    _, merged, model_config = family_adapter(tmp_path, name)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = theirs(torch.tensor(TOKENS, dtype=torch.int64)).logits.float().numpy()
    hidden, _ = transformer.forward(merged, model_config, TOKENS)
    expected = transformer.logits(merged, model_config, hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("preference_model", [False, True])
def test_peft_computes_what_the_merged_model_does(model, folder, tmp_path, preference_model):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    config = group(rank=3, alpha=7.0)
    trained, frozen = write_adapter(
        tmp_path / "adapter", model, config, preference_model=preference_model
    )
    params = lora.merged(trained, frozen, config)
    if preference_model:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    else:
        base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = theirs(torch.tensor(TOKENS, dtype=torch.int64)).logits.float().numpy()
    hidden, _ = transformer.forward(params, model.config, TOKENS)
    if preference_model:
        expected = transformer.scores(params, hidden[:, -1:])
    else:
        expected = transformer.logits(params, model.config, hidden)
    np.testing.assert_allclose(found, expected, atol=2e-4)
