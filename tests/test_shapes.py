"""Shapes of public models: counted as transformers counts them, and found without a hub."""

import json

import pytest

from cai_jax import shapes
from cai_jax.errors import InputError

# As the models' cards on the hub have them.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
}


@pytest.mark.parametrize("name", [name for name in shapes.SHAPES if "Instruct" not in name])
def test_parameters_are_those_that_transformers_would_allocate(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(shapes.SHAPES[name])
    model_type = values.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    expected = sum(p.numel() for p in model.parameters())
    found = shapes.read_elsewhere(name)
    assert found.parameters == expected == PUBLISHED.get(name, expected)
    assert found.config.dtype == "bfloat16" and "table of shapes" in found.source


def test_the_papers_shape_has_the_papers_size():
    assert shapes.read_elsewhere("shape:paper-52b").parameters == pytest.approx(52e9, rel=0.01)


def test_base_and_instruct_are_alike():
    for name in PUBLISHED:
        if name in shapes.SHAPES:
            assert shapes.SHAPES[f"{name}-Instruct"] == shapes.SHAPES[name]


def test_the_hubs_cache_goes_before_the_table(tmp_path, monkeypatch):
    """A cached config.json is read; here one of another vocabulary."""
    import huggingface_hub

    name = "HuggingFaceTB/SmolLM2-135M"
    values = shapes.SHAPES[name] | {"vocab_size": 49_153}
    (tmp_path / "config.json").write_text(json.dumps(values))
    cached = {(name, "config.json"): str(tmp_path / "config.json")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: cached.get(names))
    found = shapes.read_elsewhere(name)
    assert found.parameters == PUBLISHED[name] + 576
    assert found.source == f"{tmp_path}/config.json"


def test_what_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert not shapes.is_elsewhere("a/b") and shapes.is_elsewhere("a/c")
    assert not shapes.is_elsewhere("models/a/c") and not shapes.is_elsewhere("sandbox:models/x")
    assert shapes.is_elsewhere("shape:paper-52b")
    with pytest.raises(InputError, match="a/c: expected a model in the hub's cache, or one whose"):
        shapes.read_elsewhere("a/c")
