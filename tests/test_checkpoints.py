"""What a model reference means, and models saved by steps."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_models

from cai_jax import checkpoints
from cai_jax.core import artifact, mesh
from cai_jax.errors import InputError


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.write_llama(folder, tie_word_embeddings=False, num_key_value_heads=2)
    return folder


@pytest.fixture(scope="module")
def step(llama, tmp_path_factory):
    """A finished step that holds the model."""
    folder = tmp_path_factory.mktemp("step")
    checkpoints.save_model(folder, checkpoints.load_model(llama))
    artifact.write_manifest(folder, {"kind": "finetune"})
    return folder


def same(params, expected):
    params, expected = tiny_models.leaves(params), tiny_models.leaves(expected)
    assert params.keys() == expected.keys()
    for name, leaf in params.items():
        assert leaf.dtype == np.float32
        assert np.array_equal(leaf, expected[name]), name


def test_a_step_gives_back_the_model_it_was_given(llama, step):
    model, saved = checkpoints.load_model(llama), checkpoints.load_model(step)
    assert saved.config == model.config
    same(saved.params, model.params)
    assert saved.tokenizer.encode_prompt("the Human é") == model.tokenizer.encode("the Human é")
    assert saved.tokenizer.eos_id == 1
    assert saved.tokenizer.pad_id == 0
    same(checkpoints.load_model(step / "model").params, model.params)


def test_a_preference_model_is_saved_without_an_unembedding(llama, tmp_path):
    model = checkpoints.load_model(llama)
    head = {"kernel": np.arange(16, dtype=np.float32)}
    scored = model._replace(params={**model.params, "score_head": head})
    checkpoints.save_model(tmp_path, scored)
    artifact.write_manifest(tmp_path, {"kind": "preference"})
    expected = {name: leaf for name, leaf in scored.params.items() if name != "unembedder"}
    same(checkpoints.load_model(tmp_path).params, expected)
    assert "unembedder" in scored.params  # the caller's own is untouched


@pytest.mark.parametrize("kind", ["folder", "step"])
def test_a_mesh_holds_the_same_params_in_parts(llama, step, kind):
    from ml_collections import ConfigDict

    source = llama if kind == "folder" else step
    devices = mesh.make_mesh(ConfigDict({"data": 1, "fsdp": 2, "tensor": 2}))
    model = checkpoints.load_model(source, devices)
    same(model.params, checkpoints.load_model(source).params)
    gate = model.params["layers"]["mlp"]["gate"]
    assert len(gate.sharding.device_set) == 4
    assert gate.addressable_shards[0].data.size == gate.size // 4


@pytest.mark.parametrize("kind", ["folder", "step"])
def test_half_precision_is_the_rounded_whole(llama, step, kind, tmp_path):
    """A model that computes in it is loaded so, unless it is to be trained."""
    source = shutil.copytree(llama if kind == "folder" else step, tmp_path / "half")
    config_file = source / ("config.json" if kind == "folder" else "model/config.json")
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"dtype": "bfloat16"}))
    half = tiny_models.leaves(checkpoints.load_model(source).params)
    assert checkpoints.load_model(source, dtype="float32").params["final_norm"]["scale"].dtype == (
        np.float32
    )
    whole = tiny_models.leaves(checkpoints.load_model(llama if kind == "folder" else step).params)
    assert half.keys() == whole.keys()
    for name, leaf in half.items():
        assert leaf.dtype == ml_dtypes.bfloat16
        assert np.array_equal(leaf, np.asarray(whole[name]).astype(ml_dtypes.bfloat16)), name


def test_abstract_params_are_those_of_the_families(llama):
    model = checkpoints.load_model(llama)
    abstract = checkpoints.abstract_params(model.config, preference_model=False)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), abstract)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), model.params)
    abstract = checkpoints.abstract_params(model.config, preference_model=True)
    assert set(abstract) == set(shapes) - {"unembedder"} | {"score_head"}


def test_references_that_mean_no_model_are_refused_in_one_line(llama, step, tmp_path):
    unfinished, other, empty = tmp_path / "unfinished", tmp_path / "other", tmp_path / "empty"
    (unfinished / "model").mkdir(parents=True)
    other.mkdir()
    artifact.write_manifest(other, {"kind": "compare"})
    empty.mkdir()
    file = tmp_path / "file"
    file.touch()
    for reference, message in (
        (tmp_path / "no", "expected a file or folder, found none; check the path"),
        (file, "expected a model folder or a finished step, found a file"),
        (empty, "expected a model folder with config.json, found none"),
        (unfinished, "unfinished step (no manifest.json); run it to its end first"),
        (other, "this step makes no model; name one that has model/"),
        ("sandbox:models/none-such", "sandbox:models/none-such: no such file in the package"),
        ("nobody/no-model", "no such folder here, and not readable as an id of the hub"),
    ):
        with pytest.raises(InputError) as error:
            checkpoints.load_model(reference)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_sandbox_references_are_files_of_the_package():
    path = checkpoints.resolve("sandbox:constitution.json")
    assert path.is_file()
    assert path.parts[-4:] == ("cai_jax", "sandbox", "data", "constitution.json")


def hub_cache(root, llama, name):
    """The folder in which huggingface_hub keeps what it has downloaded, with one model."""
    model = root / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / ("0123456789" * 4)
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(snapshot.name)
    (model / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama.iterdir())):
        (model / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("network", ["off", "broken"])
def test_an_id_of_the_hub_is_read_from_the_cache_without_a_network(
    llama, tmp_path, monkeypatch, network
):
    snapshot = hub_cache(tmp_path / "hub", llama, "some-org/Tiny-1.5B")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    if network == "broken":
        download = huggingface_hub.snapshot_download

        def fail(name, *, local_files_only=False, **options):
            assert not any("bin" in pattern for pattern in options["allow_patterns"])
            if not local_files_only:
                raise ConnectionError("the name cannot be resolved\nand so on")
            return download(name, local_files_only=True, **options)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert checkpoints.model_folder("some-org/Tiny-1.5B") == snapshot
    same(checkpoints.load_model("some-org/Tiny-1.5B").params, checkpoints.load_model(llama).params)
    with pytest.raises(InputError) as error:
        checkpoints.model_folder("some-org/Other")
    assert str(error.value).startswith("some-org/Other: no such folder here, and not readable as")
    assert "\n" not in str(error.value)


def test_a_path_that_exists_is_no_id_of_the_hub(llama, tmp_path, monkeypatch):
    hub_cache(tmp_path / "hub", llama, "org/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert checkpoints.model_folder("org/name") != Path("org/name")
    tiny_models.write_llama(Path("org/name"), num_hidden_layers=1)
    assert checkpoints.model_folder("org/name") == Path("org/name")
