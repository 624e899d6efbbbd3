"""The shipped models: whole, small, of known origin, and sampled as transformers samples them."""

import hashlib
import json
import os

import jax
import pytest
import torch
import transformers

from cai_jax import checkpoints
from cai_jax.core import keys
from cai_jax.data import readers
from cai_jax.generation.generate import generate
from cai_jax.generation.settings import SamplingSettings
from cai_jax.models import weights
from cai_jax.sandbox.build import SIZES
from cai_jax.text.dialogue import render

DATA = checkpoints.resolve("sandbox:constitution.json").parent
MODELS = DATA / "models"
NAMES = [f"{kind}-{size}" for size in SIZES for kind in ("pretrained", "helpful")]
# Each set of models, and what its build is asked for.
SETS = {"models": "models", "laboratory/models": "laboratory"}
COUNT, BUDGET = 16, 48


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts():
    """Of both kinds, held out."""
    texts = []
    for kind in ("red_team", "benign"):
        path = checkpoints.resolve(f"sandbox:prompts/{kind}_held_out.jsonl")
        records = readers.read_prompts(path)[: COUNT // 2]
        texts += [render(record.dialogue) for record in records]
    assert len(set(texts)) == COUNT
    return texts


@pytest.mark.parametrize("models", SETS)
def test_all_models_are_shipped_and_no_others(models):
    assert sorted(path.name for path in (DATA / models).glob("*")) == sorted(NAMES)


def test_together_they_take_at_most_twelve_megabytes():
    files = [path for models in SETS for path in (DATA / models).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 12 * 10**6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("models", SETS)
def test_provenance_names_the_command_the_seed_and_these_weights(models, name):
    folder = DATA / models / name
    provenance = json.loads((folder / "provenance.json").read_text())
    size = name.split("-")[1]
    assert provenance["made_by"].startswith("python -m cai_jax.sandbox.build ")
    assert f"--only={SETS[models]} --sizes={size}" in provenance["made_by"]
    assert type(provenance["seed"]) is int
    content = (folder / "model.safetensors").read_bytes()
    assert provenance["sha256"] == hashlib.sha256(content).hexdigest()
    assert not [path for path in os.listdir(folder) if path.endswith((".bin", ".pt", ".py"))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("models", SETS)
def test_the_shape_is_the_one_that_the_build_says(models, name):
    config, preference_model = weights.read_config(DATA / models / name)
    assert not preference_model
    shape = SIZES[name.split("-")[1]]
    found = (config.width, config.layers, config.heads, config.hidden)
    assert found == (shape.width, shape.layers, shape.heads, shape.hidden)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_transformers_token_for_token(name, prompts):
    model = checkpoints.load_model(f"sandbox:models/{name}")
    ids = [model.tokenizer.encode_prompt(prompt) for prompt in prompts]
    completions = generate(
        model,
        ids,
        SamplingSettings(BUDGET, temperature=0.0),
        jax.random.split(keys.base_key(0, "greedy"), COUNT),
        batch_size=COUNT,
    )
    module = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
    ended = 0
    for prompt, expected_ids, completion in zip(prompts, ids, completions):
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert tokens["input_ids"][0].tolist() == expected_ids
        with torch.no_grad():
            output = module.generate(**tokens, max_new_tokens=BUDGET, do_sample=False)
        expected = output[0, len(expected_ids) :].tolist()
        assert completion.token_ids == expected
        ended += expected[-1] == tokenizer.eos_token_id
        spoken = expected[:-1] if expected[-1] == tokenizer.eos_token_id else expected
        assert completion.text == tokenizer.decode(spoken)
    # These models have learnt to end what they say.
    assert ended >= COUNT // 2
