import json

import numpy as np
import pytest
from scripted import run_stage
from world_models import human, write_model

from cai_jax import checkpoints
from cai_jax.data.schema import Chain, Round, write_records
from cai_jax.errors import InputError
from cai_jax.stages import score_revisions

REQUESTS = ("how do i rob the market with the boss?", "how do i play a song for the boss?")
TEXTS = ("first, cut the alarm wire.", "i can not help with that.", "save a little every week.")


def chain(number, texts):
    rounds = tuple(Round("general-1", "findings: clean.", text) for text in texts[1:])
    return Chain(f"c{number}", human(REQUESTS[number % 2]), texts[0], rounds)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(evaluation, counts, model folder, chains) of a random preference model."""
    folder = tmp_path_factory.mktemp("scores")
    model = write_model(folder / "pm", seed=3, preference_model=True)
    chains = [chain(i, TEXTS[i:] + TEXTS[:i]) for i in range(3)]
    write_records(folder / "a.jsonl", chains)
    write_records(folder / "b.jsonl", [chain(0, TEXTS[:2])])
    inputs = {
        "chains": {"a": folder / "a.jsonl", "b": folder / "b.jsonl"},
        "preference_model": {"pm": model, "again": model},
    }
    counts = run_stage(score_revisions, folder / "step", inputs, num_resamples=50, batch_size=4)
    return json.loads((folder / "step/evaluation.json").read_text()), counts, model, chains


def test_the_mean_score_of_each_revision(scored):
    """Each text alone, forward through the model by hand, against what the stage found."""
    import jax.numpy as jnp

    from cai_jax.models import transformer

    found, counts, folder, chains = scored
    model = checkpoints.load_model(folder)
    tokenizer = model.tokenizer
    for revision in range(3):
        scores = []
        for one in chains:
            text = [one.response, *(r.revision for r in one.rounds)][revision]
            prompt = f"\n\nHuman: {one.dialogue[0].text}\n\nAssistant:"
            ids = [*tokenizer.encode(f"{prompt} {text}"), tokenizer.eos_id]
            hidden, _ = transformer.forward(model.params, model.config, jnp.array([ids]))
            head = model.params["score_head"]
            scores.append(float(transformer.scores({"score_head": head}, hidden)[0, -1]))
        at = found["chains"]["a"][revision]
        assert at["pm"] == pytest.approx(np.mean(scores), abs=1e-5)
        assert at["again"] == at["pm"] and at["n"] == {"pm": 3, "again": 3}
        low, high = at["intervals"]["pm"]
        assert min(scores) - 1e-5 <= low <= at["pm"] <= high <= max(scores) + 1e-5
    assert len(found["chains"]["b"]) == 2 and counts["records"] == 9 + 2


def test_distinct_pairs_of_words(scored):
    assert score_revisions.distinct(["a b c", "a b d"]) == 3 / 4  # ab bc ab bd
    assert score_revisions.distinct(["a b c", "c b a"], 1) == 3 / 6
    assert score_revisions.distinct(["alone", ""]) == 0.0
    found = scored[0]["distinct_2"]
    assert found["a"] == [1.0, 1.0, 1.0] and len(found["b"]) == 2


def test_what_is_refused(tmp_path):
    for inputs, role in (({}, "chains"), ({"chains": {"a": tmp_path}}, "preference_model")):
        with pytest.raises(InputError, match=f"inputs.{role}: expected a group of named steps"):
            run_stage(score_revisions, tmp_path / role, inputs)


def test_the_plan_reads_every_text_with_every_model():
    chains = {"records": 10, "revisions": 40, "tokens": 600, "prompt_tokens": 100}
    planned = {"chains": {"a": chains}, "preference_model": {"x": {"parameters": 5}, "y": {}}}
    plan = score_revisions.plan(score_revisions.default_config(), planned)
    assert plan == {"records": 50, "tokens": 1400, "flops": 2.0 * 5 * 700}
