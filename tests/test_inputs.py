import json

import pytest

from cai_jax import inputs
from cai_jax.generation.planning import few_shot_tokens
from cai_jax.stages import critique_revise

CONSTITUTION = {
    "name": "n",
    "provenance": "ours",
    "principles": [
        {"id": "a", "critique_request": "c" * 40, "revision_request": "r", "comparison": "o" * 3}
    ],
    "critique_few_shots": ["\n\nHuman:" + "x" * 32, "\n\nHuman:" + "x" * 72],
    "comparison_few_shots": [
        {"dialogue": "\n\nHuman: q?", "better": "b" * 10, "worse": "w" * 10}  # 11 + 20
    ],
    "reasoning_few_shots": ["{}" + "x" * 18],
}


def test_a_constitution_is_counted_by_principles_and_few_shots(tmp_path):
    path = tmp_path / "constitution.json"
    path.write_text(json.dumps(CONSTITUTION, indent=2))
    # Four characters are a token.
    counts = inputs.count("constitution", path)
    assert counts == {
        "records": 1,
        "tokens": 11,
        "critique_few_shots": [10, 20],
        "comparison_few_shots": [7],
        "reasoning_few_shots": [5],
    }
    assert [few_shot_tokens(counts, "critique", n) for n in (0, 1, 2, 9)] == [0, 10, 30, 30]
    assert few_shot_tokens({}, "critique", 2) == 0


def test_critiques_and_revisions_read_their_few_shots():
    config = critique_revise.default_config()
    prompts, model = {"records": 10, "tokens": 100}, {"parameters": 1}
    config.num_rounds, config.num_few_shots = 3, 2

    def flops(**more):
        return critique_revise.plan(config, {"prompts": prompts, "model": model, **more})["flops"]

    shots = {"constitution": {"critique_few_shots": [10, 20, 40]}}
    # 10 prompts, 3 rounds, a critique and a revision, 30 tokens each; 2 FLOPs a token.
    assert flops(**shots) - flops() == pytest.approx(2 * 10 * 3 * 2 * 30)
    config.critique = False
    assert flops(**shots) - flops() == pytest.approx(2 * 10 * 3 * 30)
