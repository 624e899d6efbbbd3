import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from world_models import WORDS, human, one_device, write_model

from cai_jax import checkpoints
from cai_jax.algorithms import goodhart
from cai_jax.algorithms.ppo import Controls
from cai_jax.core import mesh, training
from cai_jax.core.metrics import read_metrics
from cai_jax.core.optimizer import make_optimizer
from cai_jax.data.prompt_batches import FittedPrompts
from cai_jax.data.rollouts import texts
from cai_jax.data.schema import Prompt, Rollout, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.generation import batching
from cai_jax.generation.preference import end_scores, preference_scores
from cai_jax.generation.score import score as score_texts
from cai_jax.generation.settings import Stats
from cai_jax.models import transformer, weights
from cai_jax.sandbox.tokenizer import vocabulary
from cai_jax.stages import ppo
from cai_jax.text import phrases
from cai_jax.text.dialogue import render

BATCH, RESPONSE = 32, 6
LIKED = 444  # the preference model below likes tokens from here on: half of the vocabulary
SMALL = {
    "prompts_per_iteration": BATCH // 2,
    "samples_per_prompt": 2,
    "max_new_tokens": RESPONSE,
    "iterations": 3,
    "record_every": 2,
    "learning_rate": 2e-2,
    "schedule": "constant",
    "kl_coefficient": 0.02,
    "snapshot_every": 2,
}


def write_judge(folder):
    """A preference model made by hand: it scores a text by its share of liked tokens.

    Attention is uniform; its value is whether a token is liked, which the head reads.
    """
    write_model(folder, seed=1, preference_model=True)
    model = checkpoints.load_model(folder)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), model.params)
    for scale in (
        params["final_norm"],
        *(params["layers"][f"{n}_norm"] for n in ("attention", "mlp")),
    ):
        scale["scale"] += 1
    params["embedder"]["embedding"][:, 1] = 1.0
    params["embedder"]["embedding"][LIKED:, 0] = 1.0
    params["layers"]["attention"]["value"][0, 0, 0, 0] = 1.0
    params["layers"]["attention"]["out"][0, 0, 0, 2] = 1.0
    params["score_head"]["kernel"][2] = 16.0
    (folder / "model.safetensors").unlink()
    weights.write_folder(folder, model.config, params)
    return folder


def write_prompts(path, count=20):
    words = [WORDS[1 + number % 7] for number in range(count)]
    write_records(
        path,
        [
            Prompt(
                f"{path.stem}-{number}",
                human(f"tell me about the {word} {'please ' * (number % 3)}"),
            )
            for number, word in enumerate(words)
        ],
    )
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": write_model(folder / "policy"),
        "preference_model": write_judge(folder / "judge"),
        "prompts": [write_prompts(folder / "a.jsonl", 20), write_prompts(folder / "b.jsonl", 12)],
    }


def run(folder, inputs, **changes):
    folder.mkdir()
    return ppo.run(one_device(ppo.default_config(), **{**SMALL, **changes}), inputs, folder)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo") / "rl"
    return folder, run(folder, inputs)


def test_metrics_of_an_iteration(trained):
    folder, counts = trained
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    # The policy is the reference until the first update.
    assert lines[0]["kl"] == 0 and lines[2]["kl"] > 1e-3
    # A random model: nearly uniform over 888 tokens, and so hardly any response ends.
    assert np.log(888) - 1 < lines[0]["entropy"] < np.log(888)
    assert lines[0]["length"] == pytest.approx(RESPONSE, abs=0.5)
    assert lines[0]["eos_rate"] <= 0.1
    assert 0 < lines[0]["clip_fraction"] < 1
    assert counts["records"] == 3 * BATCH and counts["dropped"] == 0
    assert counts["tokens"] == sum(round(line["length"] * BATCH) for line in lines)
    assert (counts["first_score"], counts["score"]) == pytest.approx(
        (lines[0]["score"], lines[2]["score"]), rel=1e-6
    )


def test_rollouts_are_kept_and_scored_as_the_saved_models_score(trained, inputs):
    folder, _ = trained
    rollouts = read_records(folder / "rollouts.jsonl", Rollout)
    assert [r.iteration for r in rollouts] == [1] * BATCH + [3] * BATCH
    first = [r for r in rollouts if r.iteration == 1]
    assert all(abs(r.kl) <= 1e-5 for r in first)
    lines = read_metrics(folder)
    assert np.mean([r.score for r in first]) == pytest.approx(lines[0]["score"], abs=1e-4)
    # A random policy writes markers and glued words too. Responses of as many words as tokens have
    # one tokenization, unless the first word is also a token without a space before it.
    words = re.compile("[a-z]+" + " [a-z]+" * (RESPONSE - 1))
    plain = [
        r
        for r in rollouts
        if words.fullmatch(r.response) and r.response.split()[0] not in vocabulary()
    ]
    assert len(plain) >= 10
    judge = checkpoints.load_model(inputs["preference_model"])
    texts = [
        [*judge.tokenizer.encode(f"{render(r.dialogue)} {r.response}"), judge.tokenizer.eos_id]
        for r in plain
    ]
    np.testing.assert_allclose([r.score for r in plain], preference_scores(judge, texts), atol=2e-4)


def test_what_every_iteration_logs(trained):
    folder, _ = trained
    lines = read_metrics(folder)
    for line in lines:
        assert line["kl_coefficient"] == 0.02 and line["evasive"] == 0
        assert line["explained_variance"] < 1 and line["policy_kl"] > 0
    samples = read_records(folder / "samples.jsonl", Rollout)
    assert [r.iteration for r in samples] == [1, 1, 2, 2, 3, 3]
    assert samples[:2] == read_records(folder / "rollouts.jsonl", Rollout)[:2]


def test_models_along_the_training_are_kept_and_can_be_named(trained):
    folder, _ = trained
    (folder / "manifest.json").write_text("{}")
    assert [path.name for path in (folder / "snapshots").iterdir()] == ["step-0002"]
    middle, last = checkpoints.load_model(f"{folder}@2"), checkpoints.load_model(folder)
    path = checkpoints.load_model(folder / "snapshots" / "step-0002")
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), middle.params, last.params)
    assert min(jax.tree.leaves(apart)) > 0
    jax.tree.map(np.testing.assert_array_equal, middle.params, path.params)
    with pytest.raises(InputError, match="@4: no such model; .* after iterations 2$"):
        checkpoints.load_model(f"{folder}@4")
    with pytest.raises(InputError, match="nothing@4: expected a finished step"):
        checkpoints.load_model(folder.parent / "nothing@4")


def test_saved_model_is_a_plain_language_model_that_has_moved(trained, inputs, tmp_path):
    folder, _ = trained
    (folder / "manifest.json").write_text("{}")
    model, before = checkpoints.load_model(folder), checkpoints.load_model(inputs["model"])
    assert set(model.params) == set(before.params)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), model.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_same_seed_same_run_and_another_seed_another(trained, inputs, tmp_path):
    folder, counts = trained
    assert run(tmp_path / "rl", inputs) == counts
    for name in ("metrics.jsonl", "rollouts.jsonl", "samples.jsonl"):
        assert (tmp_path / "rl" / name).read_bytes() == (folder / name).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    run(other / "rl", inputs, iterations=1, seed=1)
    first = [read_records(of / "rollouts.jsonl", Rollout)[:BATCH] for of in (folder, other / "rl")]
    assert {r.response for r in first[0]}.isdisjoint({r.response for r in first[1]})


class Programs:
    """The compiled programs of one small setting, and what they need."""

    def __init__(self, inputs):
        self.config = one_device(ppo.default_config(), **SMALL)
        self.reference = checkpoints.load_model(inputs["model"])
        self.judge = checkpoints.load_model(inputs["preference_model"])
        fitted = ppo.read_prompts(self.config, inputs["prompts"], self.reference)
        self.draws = ppo.draw_prompts(fitted, self.config, jax.random.key(0))
        optimizer = make_optimizer(self.config, 100)
        device_mesh = mesh.make_mesh(self.config.mesh)
        self.new_state = functools.partial(
            training.create_state,
            ppo.starting_params(self.config, self.reference, self.judge),
            optimizer,
            device_mesh,
        )
        _, shardings = self.new_state()
        rollout, update = ppo.compiled(
            self.config, self.reference, self.judge, optimizer, device_mesh, shardings
        )
        self.rollout = lambda params, prompts: rollout(
            params, self.reference.params, self.judge.params, prompts
        )
        self.update = lambda state, experience, offset, key: update(
            state,
            experience,
            Controls(np.float32(offset), np.float32(1), np.float32(self.config.kl_coefficient)),
            key,
        )


@pytest.fixture(scope="module")
def programs(inputs):
    return Programs(inputs)


def test_score_rises_under_a_fixed_judge_and_the_reference_stays(programs, inputs):
    state, _ = programs.new_state()
    before = jax.tree.map(np.array, programs.reference.params)
    scores, offset, key, later = [], 0.0, jax.random.key(1), Stats()
    for iteration in range(40):
        # New weights take the place of the old ones, and nothing is compiled for them.
        with batching.measured(later if iteration else None):
            _, prompts = next(programs.draws)
            experience = programs.rollout(state.params, prompts)
            offset = offset if iteration else np.mean(experience.scores)
            scores.append(float(np.mean(experience.scores)))
            state, _, metrics = programs.update(
                state, experience, offset, jax.random.fold_in(key, iteration)
            )
    assert later.seconds > 0 == later.compile_seconds
    liked = np.asarray(experience.tokens)[:, -RESPONSE:] >= LIKED
    assert liked[np.asarray(experience.response)].mean() > 0.9
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 3
    jax.tree.map(np.testing.assert_array_equal, before, programs.reference.params)

    # What the programs say of the last responses is what an independent path says.
    _, prompts = next(programs.draws)
    experience = jax.device_get(programs.rollout(state.params, prompts))
    width = prompts.tokens.shape[1]
    asked = [row[mask == 1].tolist() for row, mask in zip(prompts.tokens, prompts.mask)]
    said = [
        [row[present].tolist()]
        for row, present in zip(experience.tokens[:, width:], experience.response)
    ]
    models = {
        "logprobs": programs.reference._replace(params=state.params["policy"]),
        "ref_logprobs": programs.reference,
    }
    for name, model in models.items():
        found = getattr(experience, name)
        for row, (expected,) in enumerate(score_texts(model, asked, said)):
            np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-4)
    assert np.abs(experience.logprobs - experience.ref_logprobs).max() > 0.5


def test_values_are_read_off_the_policy_and_do_not_train_it(programs):
    params = ppo.starting_params(programs.config, programs.reference, programs.judge)
    evaluate = ppo.make_evaluate(programs.config, programs.reference.config, programs.judge.config)
    tokens = np.array([[9, 450, 460, 7, 3, 5, 8, 11]], np.int32)

    def total(params):
        return evaluate(params, tokens, np.ones_like(tokens))[1].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert value == 0  # before the first update
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["policy"]))
    assert np.any(gradient["value"]["score_head"]["kernel"])


def test_scores_are_read_at_an_end_token_after_the_response(programs):
    """Also where a response has its own end, and where padding follows; responses are of 4."""
    eos = programs.judge.tokenizer.eos_id
    tokens = np.array([[0, 0, 9, 450, 460, 7], [3, 9, 500, eos, 450, 450]], np.int32)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)
    found = end_scores(
        programs.judge.params, programs.judge.config, tokens, mask, jnp.array([6, 3]), eos, 4
    )
    expected = preference_scores(programs.judge, [[9, 450, 460, 7, eos], [3, 9, 500, eos]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(expected[0] - expected[1]) > 0.1


def test_prompts_come_once_before_one_comes_again_with_another_key():
    prompts = [Prompt(str(number), human("bike")) for number in range(6)]
    fitted = FittedPrompts(prompts, [[7] * (1 + number % 3) for number in range(6)], 0)
    config = one_device(ppo.default_config(), prompts_per_iteration=4, samples_per_prompt=1)
    draws = ppo.draw_prompts(fitted, config, jax.random.key(0))
    batches = [next(draws) for _ in range(3)]
    seen = [prompt.id for drawn, _ in batches for prompt in drawn]
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(p.id for p in prompts)
    assert np.concatenate([batch.visits for _, batch in batches]).tolist() == [0] * 6 + [1] * 6
    keys = {
        id: tuple(key)
        for drawn, batch in batches
        for id, key in zip([p.id for p in drawn], batch.keys.tolist())
    }
    assert len(set(keys.values())) == 6
    # Other batches and another order of the file do not change a prompt's key.
    config.prompts_per_iteration = 6
    turned = fitted._replace(prompts=prompts[::-1])
    drawn, batch = next(ppo.draw_prompts(turned, config, jax.random.key(0)))
    assert {p.id: tuple(key) for p, key in zip(drawn, batch.keys.tolist())} == keys


def test_samples_of_a_prompt_stand_together_and_differ():
    prompts = [Prompt(str(number), human("bike")) for number in range(3)]
    config = one_device(ppo.default_config(), prompts_per_iteration=2, samples_per_prompt=3)
    fitted = FittedPrompts(prompts, [[7], [8, 9], [7]], 0)
    draws = ppo.draw_prompts(fitted, config, jax.random.key(0))
    batches = [next(draws) for _ in range(3)]
    rows = [prompt.id for drawn, _ in batches for prompt in drawn]
    assert all(len(set(rows[first : first + 3])) == 1 for first in range(0, 18, 3))
    assert sorted(rows[:9:3]) == sorted(rows[9::3]) == ["0", "1", "2"]
    visits = np.concatenate([batch.visits for _, batch in batches])
    assert visits.tolist() == [0, 1, 2] * 3 + [3, 4, 5] * 3


def test_long_prompts_are_counted_or_refused(inputs, tmp_path):
    write_records(
        tmp_path / "prompts.jsonl",
        [Prompt("short", human("bike")), Prompt("long", human("bike " * 9))],
    )
    model = checkpoints.load_model(inputs["model"])
    config = one_device(ppo.default_config(), max_prompt_tokens=8)
    prompts, ids, dropped = ppo.read_prompts(config, tmp_path / "prompts.jsonl", model)
    assert ([p.id for p in prompts], dropped) == (["short"], 1)
    assert ids == [model.tokenizer.encode(render(prompts[0].dialogue))]
    config.on_long = "refuse"
    with pytest.raises(InputError, match="prompt long: expected at most 8 tokens, found "):
        ppo.read_prompts(config, tmp_path / "prompts.jsonl", model)
    config.on_long, config.max_prompt_tokens = "drop", 1
    with pytest.raises(InputError, match="prompt short: expected at most 1 tokens"):
        ppo.read_prompts(config, tmp_path / "prompts.jsonl", model)


@pytest.mark.parametrize(
    ("changes", "roles", "message"),
    [
        ({"minibatches": 3}, {}, "samples_per_prompt: expected a multiple of 3 .*, found 32"),
        ({"clip_ratio": -0.1}, {}, "clip_ratio: expected at least 0, found -0.1"),
        ({"iterations": 0}, {}, "iterations: expected at least 1, found 0"),
        ({"on_long": "truncate"}, {}, "on_long: expected drop or refuse"),
        ({"temperature": 0.0}, {}, "temperature: expected more than 0, found 0"),
        ({"advantage": "grpo"}, {}, "advantage: expected gae or group or leave_one_out"),
        (
            {"samples_per_prompt": 1},
            {},
            "samples_per_prompt: expected at least 2 with baseline leave_one_out, found 1",
        ),
        (
            {"advantage": "group", "truncation": "bootstrap"},
            {},
            "truncation: expected advantage gae with bootstrap, found group",
        ),
        ({"kl_target": 6.0, "kl_coefficient": 0.0}, {}, "kl_coefficient: expected more than 0"),
        ({}, {"preference_model": "model"}, "preference_model: expected a score head"),
        ({}, {"model": "preference_model"}, "model: expected a language model"),
        ({}, {"judge": "model"}, "judge: expected a score head"),
        ({}, {"prompts": None}, "expected .* found no prompts"),
        ({"max_new_tokens": 60}, {}, "model: expected room for .* found 64 positions"),
    ],
)
def test_bad_input_is_refused(inputs, tmp_path, changes, roles, message):
    exchanged = inputs | {role: inputs.get(other) for role, other in roles.items()}
    with pytest.raises(InputError, match=message):
        run(tmp_path / "rl", exchanged, **changes)
    assert not list((tmp_path / "rl").iterdir())


def test_another_tokenizer_is_refused(inputs, tmp_path):
    import shutil

    folder = shutil.copytree(inputs["preference_model"], tmp_path / "judge")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[" bike"], vocabulary[" the"] = vocabulary[" the"], vocabulary[" bike"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="preference_model: expected the tokenizer of the policy"):
        run(tmp_path / "rl", {**inputs, "preference_model": folder})


def test_plan():
    config = one_device(
        ppo.default_config(),
        iterations=10,
        prompts_per_iteration=4,
        samples_per_prompt=2,
        max_prompt_tokens=20,
        max_new_tokens=5,
        epochs=2,
        minibatches=4,
    )
    planned = {"model": {"parameters": 3}, "preference_model": {"parameters": 2}}
    assert ppo.plan(config, planned) == {
        "records": 80,
        "tokens": 400,
        "flops": 80 * 25 * (18 * 3 + 2 * 2),
        "updates": 80,
    }
    config.value_model = "preference_model"  # evaluated once more, and trained
    assert ppo.plan(config, planned)["flops"] == 80 * 25 * (18 * 3 + (2 + 14) * 2)


def test_a_training_that_diverges_keeps_what_was_good(inputs, tmp_path, monkeypatch):
    compiled, folder = ppo.compiled, tmp_path / "rl"

    def diverging(*arguments):
        rollout, update = compiled(*arguments)
        numbers = iter(range(1, 9))

        def broken(*arguments):
            state, experience, metrics = update(*arguments)
            return (
                state,
                experience,
                metrics | {"policy_loss": np.inf if next(numbers) == 3 else 0.0},
            )

        return rollout, broken

    monkeypatch.setattr(ppo, "compiled", diverging)
    with pytest.raises(FloatingPointError) as error:
        run(folder, inputs)
    message = str(error.value)
    assert message.startswith(
        "rl: iteration 3: policy_loss is inf; the last good checkpoint is "
        f"{folder}/snapshots/step-0002, and nothing was written over it"
    )
    drawn = {r.id for r in read_records(folder / "samples.jsonl", Rollout)}
    assert drawn and re.search(r"records [ab]-\d+, [ab]-\d+, .* \.\.\.$", message)
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.jsonl",
        "phrases.json",
        "rollouts.jsonl",
        "samples.jsonl",
        "snapshots",
    ]
    assert len(read_metrics(folder)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": "group", "kl_estimate": "k3", "kl_target": 2.0, "kl_horizon": 64},
        {
            "value_model": "preference_model",
            "score_normalization": "running",
            "baseline": "none",
            "truncation": "bootstrap",
            "temperature": 0.7,
            "compute_dtype": "bfloat16",
            "remat": "dots",
        },
    ],
    ids=["group", "values of a preference model"],
)
def test_other_choices_run_and_begin_at_a_kl_of_0(inputs, tmp_path, changes):
    folder = tmp_path / "rl"
    run(folder, inputs, snapshot_every=0, sample_texts=0, **changes)
    lines = read_metrics(folder)
    assert lines[0]["kl"] == 0 and lines[2]["kl"] > 1e-3
    assert not (folder / "snapshots").exists()
    if "kl_target" in changes:
        assert "value_loss" not in lines[0]
        # Far below the target the coefficient falls by a tenth of the way: 0.2 x 32 / 64.
        factors = np.array([line["kl_coefficient"] for line in lines]) / 0.02
        np.testing.assert_allclose(factors, [1, 0.9, 0.81], rtol=1e-6)
    else:
        assert lines[0]["kl_coefficient"] == 0.02
        assert lines[0]["value_loss"] > 0


def test_a_separate_value_model_begins_as_the_preference_model(programs):
    config = one_device(
        ppo.default_config(), **SMALL, value_model="preference_model", temperature=0.5
    )
    params = ppo.starting_params(config, programs.reference, programs.judge)
    evaluate = ppo.make_evaluate(config, programs.reference.config, programs.judge.config)
    row = [9, 450, 460, 7, 3, 5, 8, 11]
    logprobs, values = jax.jit(evaluate)(
        params, np.array([row], np.int32), np.ones((1, 8), np.int32)
    )
    # The value before a token is the score of all that stands before it.
    befores = [row[:end] for end in range(8 - RESPONSE, 8)]
    np.testing.assert_allclose(values[0], preference_scores(programs.judge, befores), atol=1e-5)
    # Log-probabilities are those of the tempered distribution.
    hidden, _ = transformer.forward(
        programs.reference.params, programs.reference.config, np.array([row])
    )
    logits = transformer.logits(programs.reference.params, programs.reference.config, hidden)[0]
    tempered = jax.nn.log_softmax(logits / 0.5)
    expected = [tempered[i - 1, row[i]] for i in range(8 - RESPONSE, 8)]
    np.testing.assert_allclose(logprobs[0], expected, atol=1e-5)


def test_statistics_that_the_preference_model_does_not_have_are_refused(inputs, tmp_path):
    message = r"score_statistics.json: expected the statistics of the model's scores, found none"
    with pytest.raises(InputError, match=message):
        run(tmp_path / "rl", inputs, score_normalization="stored")


def test_words_are_held_against_the_references(trained):
    folder, counts = trained
    lines = read_metrics(folder)
    rollouts = read_records(folder / "rollouts.jsonl", Rollout)
    first, last = (phrases.said(*texts([r for r in rollouts if r.iteration == i])) for i in (1, 3))
    # The numbers in the file have seven digits.
    for line, said in ((lines[0], first), (lines[2], last)):
        expected = phrases.measures(first, said)
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert lines[0]["length_drift"] == 0 and lines[0]["distinct_2"] > 0.9
    assert counts["boilerplate"] == lines[2]["boilerplate"] == 0
    assert json.loads((folder / "phrases.json").read_text()) == []


def test_a_judge_reads_what_is_kept_and_changes_nothing(
    trained, inputs, tmp_path, capsys, monkeypatch
):
    """The judge dislikes what the preference model likes."""
    folder, counts = trained
    monkeypatch.setattr(goodhart, "Z", 1.0)  # three iterations go far enough for that
    judge = checkpoints.load_model(inputs["preference_model"])
    judge.params["score_head"]["kernel"] = -judge.params["score_head"]["kernel"]
    opponent = shutil.copytree(inputs["preference_model"], tmp_path / "opponent")
    (opponent / "model.safetensors").unlink()
    weights.write_folder(opponent, judge.config, judge.params)
    found = run(tmp_path / "rl", inputs | {"judge": opponent})
    lines = read_metrics(tmp_path / "rl")
    assert [line.get("judge_score") is not None for line in lines] == [True, False, True]
    for line in lines[::2]:
        assert line["judge_score"] == pytest.approx(-line["score"], rel=1e-4)
        assert line["judge_error"] == pytest.approx(line["score_error"], rel=1e-4)
    assert found["alarm"].startswith("iteration 3: since iteration 1 the preference model's score")
    assert capsys.readouterr().err.count(f"rl: ALARM: {found['alarm']}\n") == 1
    # Draws and losses are those of the run without a judge.
    assert "alarm" not in counts and {**counts, "alarm": found["alarm"]} == found
    added = ("judge_score", "judge_error", "score_error")
    without = [{k: v for k, v in line.items() if k not in added} for line in lines]
    assert without == read_metrics(folder)
    rollouts = "rollouts.jsonl"
    assert (tmp_path / "rl" / rollouts).read_bytes() == (folder / rollouts).read_bytes()
