"""Families against transformers: defaults, folders both ways, sampling, scores, refusals."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import tiny_models
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import modeling_rope_utils

from cai_jax import checkpoints
from cai_jax.algorithms import losses
from cai_jax.core import sharding
from cai_jax.errors import InputError
from cai_jax.generation.generate import generate
from cai_jax.generation.preference import preference_scores
from cai_jax.generation.score import score
from cai_jax.generation.settings import SamplingSettings
from cai_jax.models import families, rotary, transformer, weights
from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.models.language_model import LanguageModel

CASES = tiny_models.CASES
CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3": transformers.Gemma3TextConfig,
    "olmo2": transformers.Olmo2Config,
    "gpt_neox": transformers.GPTNeoXConfig,
    "gpt2": transformers.GPT2Config,
}
# The richest case of each family.
ONE_EACH = {name.split(":")[0]: case for name, case in reversed(CASES.items())}
PROMPTS = [np.random.default_rng(i).integers(3, 71, n).tolist() for i, n in enumerate((9, 2, 6, 1))]
TOKENIZER = SimpleNamespace(bos_id=None, eos_id=None, pad_id=0, stops=(), decode=lambda ids: "")


def load(folder) -> LanguageModel:
    """A model whose layers are compiled once for all."""
    config, params = weights.read_folder(folder)
    return LanguageModel(dataclasses.replace(config, scan_unroll=1), params, TOKENIZER)


def text_of_config(family, **changes):
    """A small config.json with a model's usual options."""
    kind, shape = ONE_EACH[family]
    values = {"architectures": [families.FAMILIES[family].causal_lm]}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**values, **CLASSES[family](**small | shape).to_dict(), **values, **changes}


@pytest.mark.parametrize("family", CLASSES)
def test_absent_options_have_the_defaults_of_transformers(family):
    known = families.FAMILIES[family]
    architectures = {"architectures": [known.causal_lm]}
    of_nothing, _ = families.read_config(architectures, "here")
    of_everything, _ = families.read_config(CLASSES[family]().to_dict() | architectures, "here")
    assert of_nothing == of_everything
    assert known.model_type == CLASSES[family].model_type
    assert hasattr(transformers, known.causal_lm)
    assert hasattr(transformers, known.preference_model)


@pytest.mark.parametrize(("kind", "shape"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("preference_model", [False, True], ids=["language", "preference"])
def test_a_round_trip_keeps_every_bit(tmp_path, kind, shape, preference_model):
    module = tiny_models.write_family(
        tmp_path / "theirs", kind, preference_model=preference_model, **shape
    )
    config, params = weights.read_folder(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    weights.write_folder(tmp_path / "ours", config, params, {"eos": 1, "pad": 0})
    again, params_again = weights.read_folder(tmp_path / "ours")
    assert again == config
    leaves, leaves_again = tiny_models.leaves(params), tiny_models.leaves(params_again)
    assert leaves.keys() == leaves_again.keys()
    for name, leaf in leaves.items():
        assert np.asarray(leaf).tobytes() == np.asarray(leaves_again[name]).tobytes(), name

    auto = transformers.AutoModelForCausalLM
    if preference_model:
        auto = transformers.AutoModelForSequenceClassification
    loaded, report = auto.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    expected = module.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        difference = loaded(tokens).logits - module(tokens).logits
    assert difference.abs().max() < 1e-5  # torch sums in another order where memory lies otherwise
    count = sum(leaf.size for leaf in leaves.values())
    assert count == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", CLASSES)
def test_every_array_is_sharded_by_a_rule_of_its_rank(family):
    config, _ = families.read_config(text_of_config(family), "here")
    abstract = checkpoints.abstract_params(config, preference_model=True)
    specs = {
        sharding.array_name(path): (sharding.spec_for(sharding.array_name(path), leaf.shape), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]
    }
    for name, (spec, leaf) in specs.items():
        assert len(spec) <= leaf.ndim, name
        # What has an axis of heads, hidden units or words is split over it.
        whole = ("scale", "norm/bias", "down_bias", "out_bias", "position_embedder/embedding")
        assert ("tensor" in spec) == (not name.endswith((*whole, "score_head/kernel"))), name
    paths = {path for tensor in families.tensors(config, True) for path in tensor.paths}
    assert {"/".join(path) for path in paths} == specs.keys()


@pytest.mark.parametrize(("kind", "shape"), ONE_EACH.values(), ids=ONE_EACH)
def test_greedy_tokens_and_their_scores_are_those_of_transformers(tmp_path, kind, shape):
    module = tiny_models.write_family(tmp_path, kind, **shape)
    model, budget = load(tmp_path), 10
    expected = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        made = module.generate(
            tokens, max_new_tokens=budget, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(made[0, len(prompt) :].tolist())
    settings = SamplingSettings(max_new_tokens=budget, temperature=0.0)
    keys = (jax.random.key(0), range(len(PROMPTS)))
    completions = generate(model, PROMPTS, settings, keys, batch_size=4)
    assert [completion.token_ids for completion in completions] == expected
    assert len({token for row in expected for token in row}) > 2
    of_torch = [references.logprobs(module, *pair) for pair in zip(PROMPTS, expected)]
    for completion, logprobs in zip(completions, of_torch):
        assert np.abs(np.subtract(completion.logprobs, logprobs)).max() < 1e-4
    if model.config.learned_positions or model.config.window:
        # The same again, from a cached prompt and a whole completion behind it.
        scored = score(model, PROMPTS, [[row] for row in expected])
        for [found], logprobs in zip(scored, of_torch):
            assert np.abs(np.subtract(found, logprobs)).max() < 1e-4


@pytest.mark.parametrize(("kind", "shape"), ONE_EACH.values(), ids=ONE_EACH)
def test_scores_of_a_preference_model_are_those_of_transformers(tmp_path, kind, shape):
    module = tiny_models.write_family(tmp_path, kind, preference_model=True, **shape)
    with torch.no_grad():
        expected = [module(torch.tensor([prompt])).logits.item() for prompt in PROMPTS]
    found = preference_scores(load(tmp_path), PROMPTS)
    assert np.abs(found - expected).max() < 1e-4
    assert np.std(expected) > 0.05


@functools.partial(jax.jit, static_argnames="config")
def log_probabilities(params, config, tokens):
    hidden, _ = transformer.forward(params, config, tokens)
    return jax.nn.log_softmax(transformer.logits(params, config, hidden))


@pytest.mark.parametrize(("kind", "shape"), ONE_EACH.values(), ids=ONE_EACH)
def test_bfloat16_is_close_to_that_of_transformers(tmp_path, kind, shape):
    shape = shape | {"initializer_range": 0.08}
    if "query_pre_attn_scalar" in shape:
        shape["query_pre_attn_scalar"] = 64  # smooth attention; sharp one turns on every rounding
    module = tiny_models.write_family(tmp_path, kind, **shape)
    tokens = np.array([PROMPTS[0], PROMPTS[0][::-1]])

    def of_torch(module):
        with torch.no_grad():
            return torch.log_softmax(module(torch.tensor(tokens)).logits.float(), -1).numpy()

    half = of_torch(module.bfloat16())
    module.save_pretrained(tmp_path)
    exact = of_torch(module.float())
    model = load(tmp_path)
    assert model.config.dtype == "bfloat16"
    found = np.asarray(log_probabilities(model.params, model.config, tokens))
    assert 0 < np.abs(found - half).max() < 2e-2
    assert exact.std(axis=-1).min() > 0.05
    # Nor are we further from what both round.
    assert np.square(found - exact).mean() < 1.5 * np.square(half - exact).mean()


@functools.partial(jax.jit, static_argnames="config")
def gradients(params, config, tokens):
    def loss(params):
        hidden, _ = transformer.forward(params, config, tokens[:, :-1])
        unembed = transformer.unembedding(params, config)
        weights = jnp.ones(tokens[:, 1:].shape)
        return losses.lm_cross_entropy(
            hidden, unembed, tokens[:, 1:], weights, soft_cap=config.logits_soft_cap
        )[0]

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_losses_and_gradients_are_those_of_torch(tmp_path, family):
    kind, shape = ONE_EACH[family]
    module = tiny_models.write_family(tmp_path, kind, **shape)
    model = load(tmp_path)
    tokens = np.array([PROMPTS[0], PROMPTS[0][::-1]])
    expected = torch.nn.functional.cross_entropy(
        module(torch.tensor(tokens)).logits[:, :-1].reshape(-1, 71),
        torch.tensor(tokens)[:, 1:].reshape(-1),
        reduction="sum",
    )
    expected.backward()
    total, found = gradients(model.params, model.config, tokens)
    assert float(total) == pytest.approx(expected.item(), abs=1e-3)
    of_torch = {name: tensor.grad.numpy() for name, tensor in module.named_parameters()}
    for tensor in families.tensors(model.config, preference_model=False):
        leaves = [functools.reduce(lambda node, key: node[key], p, found) for p in tensor.paths]
        for layer in range(model.config.layers if tensor.stacked else 1):
            parts = [np.asarray(leaf[layer] if tensor.stacked else leaf) for leaf in leaves]
            name = tensor.name.format(layer=layer)
            theirs = of_torch[name]
            ours = families.to_file(tensor, parts, model.config)
            assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max(), name


ROPES = {
    "linear": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn, all set": {
        "factor": 8.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "yarn, attention factor": {"factor": 8.0, "attention_factor": 1.5},
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("original", [None, 600])
def test_scaled_rotations_are_those_of_transformers(kind, original):
    parameters = {"rope_type": kind.split(",")[0], "rope_theta": 5e5, **ROPES[kind]}
    if original and kind != "linear":
        parameters["original_max_position_embeddings"] = original
    # transformers 5 fills in what lacks, and writes to its argument.
    theirs = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters=dict(parameters)
    )
    frequencies, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs)
    values = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 2}
    config, _ = families.read_config({**values, "rope_parameters": parameters}, "here")
    cosine, sine = rotary.rotation(jnp.arange(700)[None], config)
    angles = np.arange(700)[:, None] * frequencies.double().numpy()
    assert np.abs(cosine[0, 0] - factor * np.cos(angles)).max() < 2e-4
    assert np.abs(sine[0, 0] - factor * np.sin(angles)).max() < 2e-4
    # As transformers 4 has it, and as we write it.
    old = {**values, "rope_theta": 5e5, "rope_scaling": parameters}
    assert families.read_config(old, "here")[0] == config
    assert families.read_config(families.write_config(config, False, {}), "here")[0] == config
    del parameters["rope_theta"]
    assert families.read_config(old, "here")[0] == config


def test_files_of_bare_models_and_old_masks_are_read(tmp_path):
    for kind, mask in (
        ("GPT2Config", "h.0.attn.bias"),
        ("GPTNeoXConfig", "layers.1.attention.masked_bias"),
        ("LlamaConfig", "layers.1.self_attn.rotary_emb.inv_freq"),
    ):
        folder = tmp_path / kind
        shape = {"rotary_pct": 0.5} if kind == "GPTNeoXConfig" else {}
        module = tiny_models.write_family(folder, kind, tie_word_embeddings=True, **shape)
        expected = tiny_models.leaves(weights.read_folder(folder)[1])
        module.base_model.save_pretrained(folder)
        tensors = load_file(folder / weights.SINGLE)
        assert not any(name.startswith(module.base_model_prefix) for name in tensors)
        save_file(tensors | {mask: np.ones(3, np.float32)}, folder / weights.SINGLE)
        values = json.loads((folder / "config.json").read_text())
        values["architectures"] = [type(module).__name__]
        (folder / "config.json").write_text(json.dumps(values))
        found = tiny_models.leaves(weights.read_folder(folder)[1])
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        # In another family it is a tensor like any other.
        save_file(tensors | {"h.0.mask": np.ones(3, np.float32)}, folder / weights.SINGLE)
        with pytest.raises(InputError, match=r"h\.0\.mask: not part of a model"):
            weights.check_folder(folder)


def test_both_names_of_the_unembedding_of_gpt_neox_are_read(tmp_path):
    module = tiny_models.write_family(tmp_path, "GPTNeoXConfig", rotary_pct=0.5)
    unembedding = module.lm_head.weight.detach().numpy()
    tensors = load_file(tmp_path / weights.SINGLE)
    [name] = tensors.keys() & {"embed_out.weight", "lm_head.weight"}
    for other in ("embed_out.weight", "lm_head.weight"):
        tensors = {other if key == name else key: array for key, array in tensors.items()}
        name = other
        save_file(tensors, tmp_path / weights.SINGLE)
        kernel = weights.read_folder(tmp_path)[1]["unembedder"]["kernel"]
        assert np.array_equal(np.asarray(kernel).T, unembedding)


OLD = {
    "gemma3": (
        {"rope_theta": 2e5, "rope_local_base_freq": 3e3, "sliding_window_pattern": 3},
        {"rope_theta": 2e5, "local_rope_theta": 3e3, "windowed_layers": (0, 1, 3, 4)},
    ),
    "gemma3, scaled": (
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_theta": 1e6, "rope_scaling": RopeScaling("linear", 8.0)},
    ),
    "gemma2": ({"hidden_act": "gelu"}, {"windowed_layers": (0, 2, 4), "activation": "gelu_tanh"}),
    "gemma": ({"hidden_act": "gelu", "hidden_activation": None}, {"activation": "gelu_tanh"}),
    "gpt_neox": (
        {"rotary_pct": 0.3, "rotary_emb_base": 500, "hidden_act": "gelu_fast"},
        {"rotary_fraction": 0.3, "rope_theta": 500.0, "activation": "gelu_tanh"},
    ),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
        {"window": 9, "windowed_layers": (3, 4)},
    ),
    "qwen2, off": (
        {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 3},
        {"window": None, "windowed_layers": ()},
    ),
    "mistral": ({"sliding_window": None}, {"window": None, "windowed_layers": ()}),
    "gpt2": ({"n_inner": None, "n_embd": 24}, {"hidden": 96, "width": 24}),
}


@pytest.mark.parametrize("case", OLD)
def test_options_of_transformers_4_are_read(case):
    values, fields = OLD[case]
    family = families.FAMILIES[case.split(",")[0]]
    small = {"hidden_size": 120, "num_hidden_layers": 5, "num_attention_heads": 6}
    values = {"architectures": [family.causal_lm], "num_key_value_heads": 2, **small, **values}
    config, _ = families.read_config(values | {"n_head": 6, "n_layer": 5}, "here")
    assert {name: getattr(config, name) for name in fields} == fields


REFUSED = [
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"sliding_window": 8}, "sliding_window"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
    ("llama", {"model_type": "mistral"}, "model_type"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"hidden_act": "relu"}, "hidden_act"),
    ("llama", {"attention_bias": "yes"}, "attention_bias"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type"),
    ("llama", {"rope_scaling": {"type": "longrope"}}, "rope_scaling.rope_type"),
    ("llama", {"rope_parameters": {"mrope_section": [1]}}, "rope_parameters.mrope_section"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("mistral", {"attention_bias": True}, "attention_bias"),
    ("mistral", {"sliding_window": "4"}, "sliding_window"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen2", {"attention_bias": False}, "attention_bias"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma", {"hidden_activation": "relu"}, "hidden_activation"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
    ("gemma2", {"sliding_window": None}, "sliding_window"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
    (
        "gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_parameters.sliding_attention.rope_type",
    ),
    ("olmo2", {"clip_qkv": 8.0}, "clip_qkv"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.0}}, "rotary_pct"),
    ("gpt_neox", {"hidden_size": 18}, "hidden_size"),
    ("gpt_neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures"),
    ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "architectures"),
]


@pytest.mark.parametrize(("family", "changes", "option"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(family, changes, option):
    values = text_of_config(family)
    families.read_config(values, "here")
    with pytest.raises(InputError) as error:
        families.read_config(values | changes, "here")
    said = str(error.value)
    assert said.startswith(f"here: {option}: "), said
    assert "\n" not in said
    [found] = changes.values()
    if not isinstance(found, dict | list):
        assert f"found {found!r}" in said


LLAMA = ModelConfig(vocab_size=9, width=8, layers=2, heads=2, kv_heads=2, head_dim=4, hidden=8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm", "layer"),
        ("norms", "both"),
        ("logits_soft_cap", 3.0),
        ("window", 4),
        ("rotary_fraction", 0.5),
        ("out_bias", True),
        ("gated", False),
    ],
)
def test_a_config_that_its_family_cannot_say_is_not_written(field, value):
    families.write_config(LLAMA, False, {})
    with pytest.raises(InputError, match=f"^model {field}: expected .*LlamaForCausalLM can be"):
        families.write_config(dataclasses.replace(LLAMA, **{field: value}), False, {})


GPT2 = dataclasses.replace(
    LLAMA, family="gpt2", learned_positions=True, norm="layer", gated=False, max_positions=6
)


def test_learned_positions_are_never_guessed():
    tokens, segments = np.ones((1, 4), int), np.array([[1, 1, 2, 2]])
    params = jax.eval_shape(lambda key: transformer.init_params(GPT2, key), jax.random.key(0))
    with pytest.raises(ValueError, match="must be told the positions"):
        transformer.forward(params, GPT2, tokens, segments=segments)


def test_padding_past_the_last_learned_position_makes_no_nan():
    shapes = jax.eval_shape(lambda key: transformer.init_params(GPT2, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    tokens = rng.integers(0, 9, (1, 9))
    segments = np.array([[1] * 6 + [0] * 3])
    run = jax.jit(
        lambda tokens, segments, positions: transformer.forward(
            params, GPT2, tokens, segments=segments, positions=positions
        )[0]
    )
    positions = np.arange(9)[None]
    hidden = run(tokens, segments, positions)
    assert np.isfinite(hidden).all()
    assert np.array_equal(hidden[:, :6], run(tokens, segments, np.minimum(positions, 5))[:, :6])
