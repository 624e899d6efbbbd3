import types

import jax
import numpy as np
import pytest
import tiny_models
import torch

from cai_jax import checkpoints
from cai_jax.errors import InputError
from cai_jax.generation.preference import preference_scores
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel

CONFIG = ModelConfig(
    vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24, max_positions=32
)


@pytest.fixture(scope="module")
def model():
    @jax.jit
    def init(key):
        params = transformer.init_params(CONFIG, key)
        return transformer.add_score_head(params, CONFIG, jax.random.fold_in(key, 1))

    params = init(jax.random.key(0))
    return LanguageModel(CONFIG, params, types.SimpleNamespace(eos_id=1))


def test_scores_are_those_of_each_text_alone(model):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 40, length).tolist() for length in (9, 1, 9, 9, 1)]
    found = preference_scores(model, texts, batch_size=2)
    forward = jax.jit(lambda tokens: transformer.forward(model.params, CONFIG, tokens)[0])
    kernel = model.params["score_head"]["kernel"]
    for text, score in zip(texts, found):
        last = forward(np.array([text], np.int32))[0, -1]
        assert score == pytest.approx(float(np.dot(last, kernel)), abs=1e-5)
    assert found.std() > 0.1


def test_refuses_a_language_model_and_a_text_without_room(model):
    params = {name: value for name, value in model.params.items() if name != "score_head"}
    with pytest.raises(InputError, match="without a score head"):
        preference_scores(model._replace(params=params), [[1]])
    with pytest.raises(InputError, match="text 0: expected a prompt of at most 32 tokens"):
        preference_scores(model, [[1] * 33])


def test_scores_are_those_of_transformers_classifier(tmp_path):
    module = tiny_models.write_llama(tmp_path, preference_model=True)
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, 266, length).tolist() for length in (9, 17, 2, 12, 17, 5)]
    found = preference_scores(checkpoints.load_model(tmp_path), texts, batch_size=8)
    padded = torch.tensor([text + [0] * (17 - len(text)) for text in texts])
    with torch.no_grad():
        expected = module(padded, attention_mask=(padded != 0).long()).logits[:, 0].numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 0.1


def test_refuses_an_empty_text_and_unknown_tokens(model):
    with pytest.raises(InputError, match="text 1: expected at least one token to score"):
        preference_scores(model, [[1], []])
    with pytest.raises(InputError, match="text 0: expected tokens of the model's vocabulary of 40"):
        preference_scores(model, [[1, 40]])
    assert preference_scores(model, []).shape == (0,)
