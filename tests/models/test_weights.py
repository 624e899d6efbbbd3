"""Model folders: read as transformers writes them, written as it reads them, else refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors.numpy import load_file, save_file

from cai_jax import checkpoints
from cai_jax.errors import InputError
from cai_jax.models import families, placing, tensor_files, weights
from cai_jax.models.config import ModelConfig

ODD_SHAPES = {
    "one key/value head, tied": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "head_dim not D/N, untied": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 6,
        "tie_word_embeddings": False,
    },
    "groups, one layer": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "num_hidden_layers": 1,
        "vocab_size": 77,
    },
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.write_llama(folder)
    return folder


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
@pytest.mark.parametrize("preference_model", [False, True], ids=["language", "preference"])
@pytest.mark.parametrize("shard_bytes", [10**9, 3000], ids=["one file", "shards"])
def test_a_round_trip_keeps_every_bit(tmp_path, shape, preference_model, shard_bytes):
    source, ours = tmp_path / "source", tmp_path / "ours"
    module = tiny_models.write_llama(source, preference_model=preference_model, **shape)
    config, params = weights.read_folder(source)
    ours.mkdir()
    weights.write_folder(ours, config, params, {"eos": 1, "pad": 0}, shard_bytes)
    assert len(list(ours.glob("*.safetensors"))) > 1 or shard_bytes > 3000

    again, params_again = weights.read_folder(ours)
    assert again == config
    leaves = tiny_models.leaves(params)
    assert leaves.keys() == tiny_models.leaves(params_again).keys()
    assert all(same_bits(leaves[k], v) for k, v in tiny_models.leaves(params_again).items())

    auto = transformers.AutoModelForCausalLM
    if preference_model:
        auto = transformers.AutoModelForSequenceClassification
    loaded, report = auto.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values())
    expected = module.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)


def test_shards_of_transformers_are_read(tmp_path, llama):
    module = transformers.AutoModelForCausalLM.from_pretrained(llama)
    module.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, parts = (tiny_models.leaves(weights.read_folder(f)[1]) for f in (llama, tmp_path))
    assert whole.keys() == parts.keys()
    assert all(same_bits(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("dtype", "computed", "stored"),
    [
        (torch.bfloat16, "bfloat16", "BF16"),
        (torch.float16, "float32", "F32"),
        (torch.float32, "float32", "F32"),
    ],
)
def test_half_precision_is_read_exactly(tmp_path, llama, dtype, computed, stored):
    module = transformers.AutoModelForCausalLM.from_pretrained(llama).to(dtype)
    module.save_pretrained(tmp_path / "half")
    config, params = weights.read_folder(tmp_path / "half")
    assert config.dtype == computed
    expected = module.model.embed_tokens.weight.detach().float().numpy()
    assert same_bits(params["embedder"]["embedding"], expected)
    (tmp_path / "again").mkdir()
    weights.write_folder(tmp_path / "again", config, params)
    [file] = (tmp_path / "again").glob("*.safetensors")
    assert {entry.dtype for entry in tensor_files.contents(file).values()} == {stored}
    again = tiny_models.leaves(weights.read_folder(tmp_path / "again")[1])
    assert all(same_bits(again[name], leaf) for name, leaf in tiny_models.leaves(params).items())


def test_params_can_be_half_precision_whatever_the_file_has(llama):
    import ml_dtypes

    whole = tiny_models.leaves(weights.read_folder(llama)[1])
    half = tiny_models.leaves(weights.read_folder(llama, dtype="bfloat16")[1])
    assert whole.keys() == half.keys()
    for name, leaf in half.items():
        assert same_bits(np.asarray(leaf), np.asarray(whole[name]).astype(ml_dtypes.bfloat16))


def test_layers_by_themselves_are_the_layers_together(llama, monkeypatch):
    together = tiny_models.leaves(weights.read_folder(llama)[1])
    monkeypatch.setattr(placing, "PART_BYTES", 1)
    apart = tiny_models.leaves(weights.read_folder(llama)[1])
    assert all(same_bits(together[name], leaf) for name, leaf in apart.items())


def test_the_tree_of_places_is_that_of_the_params(llama):
    seen = []

    def place(tree):
        seen.append(tree)
        return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[3]), tree)

    _, params = weights.read_folder(llama, place, "bfloat16")
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), seen[0]
    )
    assert {d for leaf in jax.tree.leaves(params) for d in leaf.devices()} == {jax.devices()[3]}


def edit_config(**values):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def edit_tensors(change):
    def edit(folder):
        tensors = load_file(folder / weights.SINGLE)
        change(tensors)
        save_file(tensors, folder / weights.SINGLE)

    return edit


def remove(name):
    return lambda folder: (folder / name).unlink()


def pickle_only(name):
    return lambda folder: (folder / weights.SINGLE).rename(folder / name)


def cut(folder):
    data = (folder / weights.SINGLE).read_bytes()
    (folder / weights.SINGLE).write_bytes(data[:-4])


def lie_about_a_shape(folder):
    path = folder / weights.SINGLE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"shape":[288,16]', b'"shape":[ 28,16]')
    assert header != data[8 : 8 + length]
    path.write_bytes(data[:8] + header + data[8 + length :])


def index_of(content):
    def edit(folder):
        (folder / weights.SINGLE).unlink()
        (folder / weights.INDEX).write_text(json.dumps(content))

    return edit


REFUSALS = {
    "no config": (remove("config.json"), "expected a model folder with config.json"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json: expected JSON",
    ),
    "no weights": (remove(weights.SINGLE), "found no weights"),
    **{
        f"a pickle, {name}": (pickle_only(name), f"found only {name}, a pickle, which can run code")
        for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt")
    },
    "half a file": (cut, "not a whole safetensors file"),
    "a lying header": (lie_about_a_shape, "model.embed_tokens.weight of 18432 bytes needs 1792"),
    "an index of nothing": (index_of({}), "weight_map: expected an object"),
    "an index of a list": (index_of({"weight_map": ["a"]}), "weight_map: expected an object"),
    "a lost shard": (
        index_of({"weight_map": {"a": "model-00001-of-00002.safetensors"}}),
        "names model-00001-of-00002.safetensors, which is not in the folder",
    ),
    "another architecture": (
        edit_config(architectures=["GPTJForCausalLM"]),
        "GPT2LMHeadModel, or its classifier with one label, found GPTJForCausalLM",
    ),
    "code of its own": (
        edit_config(architectures=["MyForCausalLM"], auto_map={"AutoModel": "my.MyForCausalLM"}),
        "its auto_map names code to run, which is never done",
    ),
    "no architecture": (edit_config(architectures=None), "found none"),
    "architectures no list": (edit_config(architectures="Llama"), "architectures: expected a list"),
    "an unknown RoPE scaling": (
        edit_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0}),
        "rope_parameters.rope_type: expected one of default, linear, llama3, yarn, "
        "found 'longrope'",
    ),
    "an old unknown RoPE scaling": (
        edit_config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope_scaling.rope_type: expected one of default, linear, llama3, yarn, found 'dynamic'",
    ),
    "RoPE of half the head": (
        edit_config(partial_rotary_factor=0.5),
        "partial_rotary_factor: only 1.0 is supported, found 0.5",
    ),
    "a bias that is not there": (
        edit_config(attention_bias=True),
        "tensor model.layers.0.self_attn.q_proj.bias of shape [16] is missing",
    ),
    "another activation": (
        edit_config(hidden_act="relu"),
        "hidden_act: expected one of silu, swish, gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, "
        "found 'relu'",
    ),
    "quantized": (
        edit_config(quantization_config={"bits": 4}),
        "quantization_config: only None is supported",
    ),
    "no width": (edit_config(hidden_size=None), "hidden_size: expected a whole number, found None"),
    "half a layer": (edit_config(num_hidden_layers=1.5), "num_hidden_layers: expected a whole"),
    "theta as text": (
        edit_config(rope_parameters={"rope_theta": "1e4"}),
        "rope_theta: expected a positive number, found '1e4'",
    ),
    "odd heads": (edit_config(head_dim=7), "head_dim: expected an even number, found 7"),
    "heads that do not divide": (
        edit_config(num_key_value_heads=3),
        "heads: expected a multiple of kv_heads = 3, found 2",
    ),
    "another shape": (
        edit_config(intermediate_size=32),
        "mlp.gate_proj.weight: expected shape [32, 16] by config.json, found [24, 16]",
    ),
    "more layers": (
        edit_config(num_hidden_layers=3),
        "tensor model.layers.2.input_layernorm.weight of shape [16] is missing",
    ),
    "fewer layers": (
        edit_config(num_hidden_layers=1),
        "tensor model.layers.1.input_layernorm.weight: not part of a model",
    ),
    "untied without an unembedding": (
        edit_config(tie_word_embeddings=False),
        "tensor lm_head.weight of shape [288, 16] is missing",
    ),
    "a tensor more": (
        edit_tensors(lambda t: t.update({"model.extra": np.zeros(2, np.float32)})),
        "tensor model.extra: not part of a model with this config.json",
    ),
    "tied to another unembedding": (
        edit_tensors(lambda t: t.update({"lm_head.weight": np.ones((288, 16), np.float32)})),
        "tie_word_embeddings: expected false beside an unembedding that is not the embedding",
    ),
    "whole numbers": (
        edit_tensors(lambda t: t.update({"model.norm.weight": np.zeros(16, np.int8)})),
        "model.norm.weight: expected one of F64, F32, F16, BF16, found I8",
    ),
    "packed weights": (
        edit_tensors(lambda t: t.update({"model.norm.weight": np.zeros(16, np.uint8)})),
        "found U8; quantized weights are not supported",
    ),
    "two labels": (
        edit_config(
            architectures=["LlamaForSequenceClassification"], id2label={"0": "a", "1": "b"}
        ),
        "num_labels (id2label): only 1 is supported, found 2",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_one_line(tmp_path, llama, spoil, message):
    folder = tmp_path / "folder"
    shutil.copytree(llama, folder)
    spoil(folder)
    said = []
    for read in (weights.read_folder, weights.check_folder, checkpoints.load_model):
        with pytest.raises(InputError) as error:
            read(folder)
        said.append(str(error.value))
    assert message in said[0]
    assert "\n" not in said[0]
    assert str(folder) in said[0] or said[0].startswith("model ")
    if "config.json, found none" not in message:
        assert said[1] == said[0]
        assert said[2] == said[0] or not (folder / "config.json").is_file()


def test_what_carries_nothing_is_read_over(tmp_path, llama):
    shutil.copytree(llama, tmp_path / "old")
    edit_tensors(
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            }
        )
    )(tmp_path / "old")
    edit_config(rope_scaling={"rope_type": "default"}, pretraining_tp=None)(tmp_path / "old")
    config, params = weights.read_folder(tmp_path / "old")
    expected = tiny_models.leaves(weights.read_folder(llama)[1])
    assert all(same_bits(expected[name], a) for name, a in tiny_models.leaves(params).items())
    assert config.tied_embeddings


@pytest.mark.parametrize("preference_model", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(
            vocab_size=77,
            width=12,
            layers=3,
            heads=6,
            kv_heads=2,
            head_dim=14,
            hidden=21,
            rope_theta=5e5,
            norm_eps=1e-6,
            tied_embeddings=False,
            max_positions=99,
            dtype="bfloat16",
        ),
        ModelConfig(vocab_size=5, width=4, layers=1, heads=1, kv_heads=1, head_dim=4, hidden=3),
    ],
)
def test_configs_are_read_as_written_and_as_transformers_reads_them(config, preference_model):
    values = families.write_config(config, preference_model, {"eos": 3})
    assert families.read_config(values, "here") == (config, preference_model)
    theirs = transformers.LlamaConfig(**values)
    assert theirs.head_dim == config.head_dim
    assert theirs.num_key_value_heads == config.kv_heads
    assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": config.rope_theta}
    assert theirs.rms_norm_eps == config.norm_eps
    assert theirs.max_position_embeddings == config.max_positions
    assert theirs.tie_word_embeddings == config.tied_embeddings
    assert (theirs.eos_token_id, theirs.pad_token_id) == (3, None)
    assert theirs.num_labels == (1 if preference_model else 2)
    assert (
        families.read_config(theirs.to_dict() | {"architectures": values["architectures"]}, "")[0]
        == config
    )


def test_a_config_of_transformers_4_is_read():
    old = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
    }
    config, preference_model = families.read_config(old, "here")
    assert not preference_model
    assert (config.kv_heads, config.head_dim) == (32, 128)
    assert (config.rope_theta, config.norm_eps) == (500000.0, 1e-6)
    assert (config.tied_embeddings, config.max_positions) == (False, 2048)
    assert config.dtype == "bfloat16"
