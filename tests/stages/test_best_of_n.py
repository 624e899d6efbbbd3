import math

import numpy as np
import pytest
from world_models import human, one_device, write_model

from cai_jax import checkpoints
from cai_jax.data.schema import Candidates, Demonstration, Prompt, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.generation.preference import preference_scores
from cai_jax.stages import best_of_n
from cai_jax.text.dialogue import render

N = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    prompts = [Prompt(f"p{i}", human("tell me about the bike " * (1 + i % 2))) for i in range(6)]
    write_records(folder / "prompts.jsonl", prompts)
    return {
        "model": write_model(folder / "model"),
        "preference_model": write_model(folder / "judge", seed=1, preference_model=True),
        "prompts": folder / "prompts.jsonl",
    }


def run(folder, inputs, **changes):
    folder.mkdir(parents=True)
    settings = {"num_samples": N, "max_new_tokens": 5, "batch_size": 4, **changes}
    return best_of_n.run(one_device(best_of_n.default_config(), **settings), inputs, folder)


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "step"
    return folder, run(folder, inputs)


def test_the_response_of_the_highest_score_is_kept(made, inputs):
    folder, counts = made
    candidates = read_records(folder / "candidates.jsonl", Candidates)
    kept = read_records(folder / "demonstrations.jsonl", Demonstration)
    judge = checkpoints.load_model(inputs["preference_model"])
    encode = judge.tokenizer.encode
    for record, demonstration in zip(candidates, kept, strict=True):
        assert len(set(record.responses)) == N  # other draws, not the same one n times
        texts = [
            [*encode(render(record.dialogue)), *encode(f" {text}")[:5], judge.tokenizer.eos_id]
            for text in record.responses
        ]
        np.testing.assert_allclose(record.scores, preference_scores(judge, texts), atol=2e-5)
        assert record.scores[record.best] == max(record.scores)
        assert demonstration == Demonstration(
            record.id, record.dialogue, record.responses[record.best]
        )
    scores = np.array([record.scores for record in candidates])
    assert counts["score"] == pytest.approx(scores.max(axis=1).mean(), abs=1e-4)
    assert counts["first_score"] == pytest.approx(scores.mean(), abs=1e-4)
    assert counts["kl"] == pytest.approx(math.log(4) - 0.75)
    assert counts["records"] == 6 and counts["dropped"] == 0 and counts["tokens"] <= 6 * N * 5


def test_fewer_samples_are_the_first_of_more_whatever_the_batch(made, inputs, tmp_path):
    folder, _ = made
    run(tmp_path / "step", inputs, num_samples=2, batch_size=8)
    more, fewer = (
        read_records(of / "candidates.jsonl", Candidates) for of in (folder, tmp_path / "step")
    )
    assert [record.responses[:2] for record in more] == [record.responses for record in fewer]


@pytest.mark.parametrize(
    ("changes", "roles", "message"),
    [
        ({"num_samples": 0}, {}, "num_samples: expected at least 1, found 0"),
        ({"temperature": 0.0}, {}, "temperature: expected more than 0"),
        ({"on_long": "cut"}, {}, "on_long: expected drop or refuse"),
        ({"max_prompt_tokens": 2}, {}, "prompt p0: expected at most 2 tokens"),
        ({}, {"preference_model": "model"}, "preference_model: expected a score head"),
        ({}, {"prompts": None}, "found no prompts"),
    ],
)
def test_bad_input_is_refused(inputs, tmp_path, changes, roles, message):
    exchanged = inputs | {role: inputs.get(other) for role, other in roles.items()}
    with pytest.raises(InputError, match=message):
        run(tmp_path / "step", exchanged, **changes)
    assert not list((tmp_path / "step").iterdir())


def test_plan():
    config = one_device(best_of_n.default_config(), num_samples=3, max_new_tokens=5)
    planned = {
        "model": {"parameters": 10},
        "preference_model": {"parameters": 7},
        "prompts": {"records": 4, "tokens": 20},
    }
    found = best_of_n.plan(config, planned)
    assert (found["records"], found["tokens"]) == (4, 60)
    assert found["flops"] == 2.0 * 17 * (3 * 20 + 60)
