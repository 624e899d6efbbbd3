import csv
import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from world_models import WORDS, human, one_device, write_model

from cai_jax import checkpoints
from cai_jax.core import artifact, mesh, training
from cai_jax.core.metrics import read_metrics
from cai_jax.data.comparisons import TokenPair, fill_pairs, fill_shared, fit_pairs
from cai_jax.data.schema import Comparison, write_records
from cai_jax.data.tokenization import load_tokenizer
from cai_jax.errors import InputError
from cai_jax.generation.preference import pair_scores, preference_scores
from cai_jax.models import score_statistics, transformer
from cai_jax.stages import preference
from cai_jax.text.dialogue import render

SURE = 0.95  # the labels of the rule below


def draw_comparisons(count, seed):
    """A rule to learn: the better response is the one that has the word "library" in it."""
    rng = random.Random(seed)
    comparisons = []
    for number in range(count):
        dialogue = human(f"tell me how to {rng.choice(WORDS[1:])} the {rng.choice(WORDS[1:])}.")
        better, worse = (
            [rng.choice(WORDS[1:]) for _ in range(rng.randrange(2, 5))] for _ in range(2)
        )
        better[rng.randrange(len(better))] = WORDS[0]
        sides, label = [" ".join(better), " ".join(worse)], SURE
        if number % 2:
            sides, label = sides[::-1], 1 - SURE
        comparisons.append(Comparison(f"{seed}-{number}", dialogue, *sides, label, "human"))
    return comparisons


def run(folder, inputs, **changes):
    folder.mkdir(parents=True)
    config = one_device(preference.default_config(), **changes)
    return preference.run(config, inputs, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A preference model trained on the rule, from two sources; and what it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    feedback = folder / "feedback"
    feedback.mkdir()
    write_records(feedback / "comparisons.jsonl", draw_comparisons(200, seed=1))
    write_records(folder / "human.jsonl", draw_comparisons(56, seed=2))
    held_out = draw_comparisons(60, seed=3)
    write_records(folder / "held_out.jsonl", held_out)
    inputs = {
        "model": model,
        "comparisons": [feedback, folder / "human.jsonl"],
        "held_out": [folder / "held_out.jsonl"],
    }
    changes = {"epochs": 6, "pairs": 16, "learning_rate": 2e-2}
    counts = run(folder / "pm", inputs, **changes)
    artifact.write_manifest(folder / "pm", {"kind": "preference", **counts})
    return folder, inputs, changes, counts, held_out


def evaluation_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def flat(values, prefix=""):
    """Nested objects and lists of numbers as one dict."""
    if not isinstance(values, dict | list):
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}


def test_learns_a_rule(trained):
    folder, _, _, counts, _ = trained
    found = evaluation_of(folder / "pm")
    assert counts["held_out_accuracy"] == found["held_out_accuracy"] >= 0.95
    assert counts["training_accuracy"] == found["training_accuracy"] >= 0.95
    assert (found["training_n"], found["held_out_n"]) == (256, 60)
    entropy = -SURE * math.log(SURE) - (1 - SURE) * math.log(1 - SURE)
    assert found["held_out_label_entropy"] == pytest.approx(entropy, abs=1e-5)
    assert entropy < found["held_out_log_loss"] < entropy + 0.15
    assert (counts["records"], counts["steps"]) == (256 * 6, 96)
    lines = read_metrics(folder / "pm")
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 96]
    assert lines[0]["loss"] > lines[-1]["loss"] and lines[-1]["tokens"] == counts["tokens"]
    assert lines[0]["entropy"] == pytest.approx(entropy, abs=1e-5)


def test_the_saved_model_scores_as_it_was_measured(trained):
    folder, _, _, _, held_out = trained
    model = checkpoints.load_model(folder / "pm")

    def text(comparison, response):
        joined = f"{render(comparison.dialogue)} {response}"
        return [*model.tokenizer.encode_prompt(joined), model.tokenizer.eos_id]

    sides = [[text(c, c.response_a) for c in held_out], [text(c, c.response_b) for c in held_out]]
    margins = np.subtract(*(preference_scores(model, texts).astype(np.float64) for texts in sides))
    p = np.array([c.p_a for c in held_out])
    losses = p * np.log1p(np.exp(-margins)) + (1 - p) * np.log1p(np.exp(margins))
    found = evaluation_of(folder / "pm")
    assert found["held_out_log_loss"] == pytest.approx(losses.mean(), abs=1e-5)
    assert found["held_out_accuracy"] == np.mean((margins > 0) == (p > 0.5))


def test_same_seed_same_artifact_whatever_the_order_of_the_held_out(trained, tmp_path):
    folder, inputs, changes, counts, held_out = trained
    write_records(tmp_path / "held_out.jsonl", held_out[::-1])
    again = run(tmp_path / "pm", {**inputs, "held_out": tmp_path / "held_out.jsonl"}, **changes)
    assert again == counts
    metrics = [(of / "pm" / "metrics.jsonl").read_bytes() for of in (folder, tmp_path)]
    assert metrics[0] == metrics[1]
    first, second = (evaluation_of(of / "pm") for of in (folder, tmp_path))
    assert flat(first) == pytest.approx(flat(second), abs=1e-6)


def test_begins_at_log_2_and_mixes_labels_of_a_half(model, tmp_path):
    undecided = [
        Comparison(c.id, c.dialogue, c.response_a, c.response_b, 0.5, "feedback")
        for c in draw_comparisons(4, seed=4)
    ]
    write_records(tmp_path / "undecided.jsonl", undecided)
    inputs = {"model": model, "comparisons": tmp_path / "undecided.jsonl"}
    run(tmp_path / "pm", inputs, pairs=4, log_every=1)
    (line,) = read_metrics(tmp_path / "pm")
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert line["entropy"] == pytest.approx(math.log(2), abs=1e-6)
    assert line["accuracy"] is None
    assert evaluation_of(tmp_path / "pm")["training_accuracy"] is None


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "pm"
    return checkpoints.load_model(write_model(folder, seed=5, preference_model=True))


def test_loss_is_that_of_the_scores_and_of_exchanged_sides(random_model):
    pairs = [TokenPair("0", [5, 6, 2], [7, 2], 0.8), TokenPair("1", [9, 2], [4, 8, 3, 2], 0.3)]
    exchanged = [TokenPair(i, b, a, 1 - p) for i, a, b, p, *_ in pairs]
    measure = jax.jit(
        lambda batch: preference.loss_and_sums(
            random_model.params, random_model.config, batch, 0.0
        )[:2]
    )
    # Two pairs of three: the rest of the batch weighs nothing.
    loss, sums = measure(fill_pairs(pairs, 3, 5))
    scores = preference_scores(random_model, [text for pair in pairs for text in pair[1:3]])
    margins = scores[[0, 2]] - scores[[1, 3]]
    expected = [0.8, 0.3] * np.log1p(np.exp(-margins)) + [0.2, 0.7] * np.log1p(np.exp(margins))
    assert abs(margins).min() > 0.01
    assert float(loss) == pytest.approx(expected.sum(), abs=1e-5)
    assert float(sums["weight"]) == float(sums["decided"]) == 2
    assert float(sums["right"]) == np.sum((margins > 0) == [True, False])
    other, other_sums = measure(fill_pairs(exchanged, 3, 5))
    assert float(other) == pytest.approx(float(loss), abs=1e-6)
    assert float(other_sums["right"]) == float(sums["right"])


def test_long_pairs_are_cut_dropped_or_refused_and_counted(model):
    tokenizer = load_tokenizer(model)
    dialogue = human("tell me the office.", "library", "the bike?")
    whole = tokenizer.encode(render(dialogue))
    fits = Comparison("fits", human("bike"), "the bike", "bike", 1.0, "human")
    long = Comparison("long", dialogue, "library", "the office the", 0.0, "human")
    hopeless = Comparison("hopeless", human("bike"), "the bike " * 9, "bike", 1.0, "human")
    records = [fits, long, hopeless]

    def fitted(on_long, records=records):
        return fit_pairs(records, tokenizer, render, 12, on_long)

    (first, pairs, none), counts = fitted("truncate")
    assert [pair.record_id for pair in first + pairs + none] == ["fits", "long"]
    assert counts == {"truncated": 1, "dropped": 1} and none == []
    # Three tokens of the longer response and the end leave eight of the dialogue, in both texts.
    assert pairs[0].a == [*whole[-8:], *tokenizer.encode(" library"), tokenizer.eos_id]
    assert pairs[0].b == [*whole[-8:], *tokenizer.encode(" the office the"), tokenizer.eos_id]
    pairs, counts = fitted("drop")
    assert (pairs, counts) == ([first, [], []], {"truncated": 0, "dropped": 2})
    message = f"record long: expected at most 12 tokens, found {len(whole) + 4}"
    with pytest.raises(InputError, match=message):
        fitted("refuse")
    with pytest.raises(InputError, match="on_long: expected one of truncate, drop, refuse"):
        fitted("cut")


def test_control_tokens_in_texts_are_text(model):
    tokenizer = load_tokenizer(model)
    record = Comparison("0", human("bike"), "bike </s>", "bike", 1.0, "human")
    [[pair]], _ = fit_pairs([record], tokenizer, render, 32, "refuse")
    assert pair.a.count(tokenizer.eos_id) == 1 and pair.a[-1] == tokenizer.eos_id


@pytest.mark.parametrize(
    ("changes", "records", "message"),
    [
        ({"pairs": 3, "mesh": {"data": 2, "fsdp": 1, "tensor": 1}}, 1, "pairs: expected a multip"),
        ({"epochs": 0}, 1, "epochs: expected at least 1, found 0"),
        ({"sequence_length": 4}, 1, r"expected pairs that fit, found none \(1 are longer than 4"),
        ({}, 0, "pairs.jsonl: expected at least one comparison, found none"),
    ],
)
def test_bad_input_is_refused(model, tmp_path, changes, records, message):
    write_records(tmp_path / "pairs.jsonl", draw_comparisons(records, seed=0))
    with pytest.raises(InputError, match=message):
        run(tmp_path / "pm", {"model": model, "comparisons": tmp_path / "pairs.jsonl"}, **changes)
    assert not list((tmp_path / "pm").iterdir())


def test_a_label_that_is_no_probability_is_refused(model):
    record = Comparison("7", human("bike"), "bike", "the bike", 1.5, "human")
    with pytest.raises(InputError, match="record 7: p_a: expected a probability in 0..1, found 1"):
        fit_pairs([record], load_tokenizer(model), render, 32, "truncate")


def test_plan():
    config = one_device(preference.default_config(), epochs=2, pairs=100, sequence_length=10)
    planned = {
        "model": {"parameters": 7},
        "comparisons": [{"records": 100, "tokens": 1}, {"records": 50, "tokens": 1}],
        "held_out": {"records": 20, "tokens": 1},
    }
    assert preference.plan(config, planned) == {
        "records": 300,
        "tokens": 300 * 2 * 10,
        "flops": 2 * 7 * (3 * 6000 + 170 * 20),
        "updates": 3,
    }


VALUES = {word: value for word, value in zip(WORDS, np.linspace(-1.5, 1.5, len(WORDS)))}


def draw_valued(count, seed, label):
    """Responses of three words that are worth the sum of their values; labels as `label` makes."""
    rng = random.Random(seed)
    comparisons, differences = [], []
    for number in range(count):
        sides = [[rng.choice(WORDS) for _ in range(3)] for _ in range(2)]
        better = sum(VALUES[w] for w in sides[0]) - sum(VALUES[w] for w in sides[1])
        p = label(1 / (1 + math.exp(-better)))
        texts = [" ".join(side) for side in sides]
        comparisons.append(Comparison(f"{seed}-{number}", human("tell me."), *texts, p, "human"))
        differences.append(better)
    return comparisons, np.array(differences)


def test_soft_labels_beat_hard_ones_and_give_back_the_true_differences(model, tmp_path):
    """Labels are noisy by construction: the better response is preferred with sigmoid(difference).

    A hard label forgets how sure the judge was, and the scores grow too far apart.
    """
    held_out, differences = draw_valued(150, seed=9, label=lambda p: p)
    write_records(tmp_path / "held_out.jsonl", held_out)
    found = {}
    for kind, label in {"soft": lambda p: p, "hard": round}.items():
        write_records(tmp_path / f"{kind}.jsonl", draw_valued(300, seed=8, label=label)[0])
        inputs = {
            "model": model,
            "comparisons": tmp_path / f"{kind}.jsonl",
            "held_out": tmp_path / "held_out.jsonl",
        }
        run(tmp_path / kind, inputs, epochs=12, pairs=32, learning_rate=2e-2)
        artifact.write_manifest(tmp_path / kind, {"kind": "preference"})
        found[kind] = evaluation_of(tmp_path / kind)["sources"]["held_out"]
    floor = found["soft"]["label_entropy"]
    assert floor == found["hard"]["label_entropy"]
    assert 0 < found["soft"]["excess_loss"] < 0.02
    assert found["soft"]["log_loss"] < found["hard"]["log_loss"] - 0.05
    assert found["soft"]["calibration_error"] < 0.05 < found["hard"]["calibration_error"]
    scorer = checkpoints.load_model(tmp_path / "soft")
    pairs = [pair for [pair] in fit_pairs(held_out, scorer.tokenizer, render, 64, "refuse")[0]]
    a, b = (preference_scores(scorer, [pair[side] for pair in pairs]) for side in (1, 2))
    assert np.corrcoef(a - b, differences)[0, 1] > 0.95


def test_each_source_is_measured_by_itself_and_the_scores_statistics_stay_with_the_model(trained):
    folder, _, _, _, held_out = trained
    found = evaluation_of(folder / "pm")
    assert list(found["sources"]) == ["training/feedback", "training/human", "held_out"]
    sizes = [of["n"] for of in found["sources"].values()]
    assert sizes == [200, 56, 60]
    own = found["sources"]["held_out"]
    for name in ("accuracy", "log_loss", "label_entropy"):
        assert own[name] == pytest.approx(found[f"held_out_{name}"], abs=1e-6)
        parts = [found["sources"][f"training/{source}"][name] for source in ("feedback", "human")]
        mean = np.average(parts, weights=sizes[:2])
        assert found[f"training_{name}"] == pytest.approx(mean, abs=1e-6)
    assert sum(own["margins"]["counts"]) == own["decided"] == 60
    assert sum(own["calibration"]["cases"]) == 2 * 60
    model = checkpoints.load_model(folder / "pm")
    pairs = [pair for [pair] in fit_pairs(held_out, model.tokenizer, render, 64, "refuse")[0]]
    scores = preference_scores(model, [text for pair in pairs for text in pair[1:3]])
    statistics = score_statistics.read(checkpoints.model_folder(folder / "pm"))
    assert statistics == pytest.approx((scores.mean(), scores.std()), abs=1e-4)


def test_a_step_goes_on_from_a_preference_model_pretrained_on_other_comparisons(trained, tmp_path):
    """It starts where the first ended: right from the first update, and not at log 2."""
    folder, inputs, *_ = trained
    inputs = {**inputs, "model": folder / "pm", "comparisons": inputs["comparisons"][1]}
    changes = {"pairs": 16, "log_every": 1, "schedule": "constant", "warmup": 0.0}
    run(tmp_path / "pm", inputs, learning_rate=1e-4, **changes)
    first = read_metrics(tmp_path / "pm")[0]
    assert first["accuracy"] >= 0.9 and first["loss"] < 0.4


def updated(model, config, batch):
    """The parameters' moves in an update of plain gradient descent, and the metrics."""
    optimizer = optax.sgd(1.0)
    step = preference.make_step(model.config, optimizer, config)
    params = jax.tree.map(jnp.asarray, model.params)
    state, _ = training.create_state(params, optimizer, mesh.make_mesh(config.mesh))
    state, metrics = jax.jit(step)(state, None, batch)
    moves = jax.tree.map(lambda new, old: np.asarray(old) - np.asarray(new), state.params, params)
    return moves, {name: float(value) for name, value in metrics.items()}


def test_weights_parts_and_centring_in_the_update(random_model):
    """The gradient of sum w (loss + c (a + b)^2) / sum w, whatever the number of parts."""
    rng = np.random.default_rng(0)
    pairs = [
        TokenPair(
            str(i),
            rng.integers(3, 800, rng.integers(1, 5)).tolist(),
            rng.integers(3, 800, rng.integers(1, 5)).tolist(),
            float(rng.uniform()),
            weight=weight,
        )
        for i, weight in enumerate([1.0, 5.0, 1.0])
    ]
    batch = fill_pairs(pairs, 4, 5)
    assert batch.weights.tolist() == [1, 5, 1, 0]
    config = one_device(preference.default_config(), pairs=4, centring=0.3)
    whole, metrics = updated(random_model, config, batch)
    config.accumulate = 2
    parts, metrics_of_parts = updated(random_model, config, batch)
    assert metrics_of_parts == pytest.approx(metrics, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)
    # By the score head, whose gradient has a closed form in the texts' last hidden states.
    hidden = np.stack([last_hidden(random_model, t) for pair in pairs for t in pair[1:3]])
    a, b = hidden[0::2], hidden[1::2]
    head = np.asarray(random_model.params["score_head"]["kernel"])
    p, w = batch.p_a[:3], batch.weights[:3] / 7
    slope = 1 / (1 + np.exp(-(a - b) @ head)) - p
    expected = (w * slope) @ (a - b) + 0.6 * (w * ((a + b) @ head)) @ (a + b)
    np.testing.assert_allclose(whole["score_head"]["kernel"], expected, atol=1e-5)


def last_hidden(model, text):
    padded = np.zeros((1, 8), np.int32)  # what stands on the right nothing can see
    padded[0, : len(text)] = text
    hidden, _ = jax.jit(transformer.forward, static_argnums=1)(model.params, model.config, padded)
    return np.asarray(hidden[0, len(text) - 1], np.float64)


def test_lora_trains_the_head_and_the_named_projections_alone(trained, tmp_path):
    folder, inputs, *_ = trained
    changes = {"rank": 2, "targets": ("value", "up")}
    counts = run(
        tmp_path / "pm", inputs, lora=changes, epochs=2, pairs=16, learning_rate=2e-2, accumulate=2
    )
    assert counts["held_out_accuracy"] > 0.75
    assert (tmp_path / "pm" / "adapter" / "adapter_config.json").is_file()
    artifact.write_manifest(tmp_path / "pm", {"kind": "preference"})
    saved, base = checkpoints.load_model(tmp_path / "pm"), checkpoints.load_model(inputs["model"])
    assert np.abs(saved.params.pop("score_head")["kernel"]).max() > 0.01
    for block, name in (("attention", "value"), ("mlp", "up")):
        after, before = (np.asarray(m.params["layers"][block].pop(name)) for m in (saved, base))
        assert np.linalg.matrix_rank((after - before)[0].reshape(16, -1), tol=1e-4) == 2
    jax.tree.map(np.testing.assert_array_equal, saved.params, base.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (1.0, 2.0)}, r"weights: expected one for each of 1 comparisons, found \(1.0"),
        ({"weights": (-1.0,)}, "weights: expected 0 or more, and not all 0"),
        ({"weights": (0.0,)}, "weights: expected 0 or more, and not all 0"),
        ({"centring": -0.1}, "centring: expected 0 or more, found -0.1"),
        ({"accumulate": 3}, "pairs: expected a multiple of 3 .* found 32"),
        ({"checkpoints": {"best": True}}, "checkpoints.best: expected inputs.held_out and"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    config = one_device(preference.default_config(), **changes)
    with pytest.raises(InputError, match=message):
        preference.check(config, {"model": "m", "comparisons": ["c.jsonl"]})


def test_people_s_own_columns_train_as_our_records_do_and_bad_rows_are_listed(model, tmp_path):
    records = [
        Comparison(f"pairs-{number}", c.dialogue, c.response_a, c.response_b, 1.0, "human")
        for number, c in zip((0, 1, 3, 4), draw_comparisons(4, seed=5))
    ]
    write_records(tmp_path / "ours.jsonl", records)
    rows = [["question", "good", "bad"]]
    rows += [[c.dialogue[0].text, c.response_a, f"{c.response_b}\n"] for c in records]
    rows.insert(3, ["no", "responses"])
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    changes = {"pairs": 2, "log_every": 1}
    fields = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    of_csv = {"model": model, "comparisons": tmp_path / "pairs.csv"}
    with pytest.raises(InputError, match=r"pairs.csv:6: expected 3 cells \(question, good, bad\)"):
        run(tmp_path / "refused", of_csv, fields=fields, **changes)

    # The order of training depends on the step's name and the records, not on where they stood.
    counts = run(
        tmp_path / "csv" / "pm", of_csv, fields=fields, data={"on_bad_record": "skip"}, **changes
    )
    ours = run(
        tmp_path / "ours" / "pm",
        {"model": model, "comparisons": tmp_path / "ours.jsonl"},
        **changes,
    )
    assert counts == ours | {"bad_records": 1}
    metrics = [(tmp_path / name / "pm/metrics.jsonl").read_text() for name in ("csv", "ours")]
    assert metrics[0] == metrics[1]
    (line,) = (tmp_path / "csv/pm/bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 6


@pytest.fixture(scope="module")
def shared_pairs():
    """Prompts of many lengths, one of them none at all, and responses of one token and more."""
    rng = np.random.default_rng(2)
    pairs = []
    for number, (prompt, a, b) in enumerate([(9, 3, 5), (1, 1, 4), (0, 2, 2), (12, 4, 1)]):
        texts = [rng.integers(3, 800, n).tolist() for n in (prompt, a, b)]
        sides = [[*texts[0], *texts[i], 2] for i in (1, 2)]
        pairs.append(TokenPair(str(number), *sides, 0.7, shared=prompt))
    return pairs


def test_responses_that_share_their_prompt_have_the_scores_of_texts_alone(
    random_model, shared_pairs
):
    shared = fill_shared(shared_pairs, 6, 24)
    scores = jax.jit(pair_scores, static_argnums=1)
    found = scores(random_model.params, random_model.config, shared)
    alone = scores(random_model.params, random_model.config, fill_pairs(shared_pairs, 6, 20))
    for side, of_alone in zip(found, alone):
        np.testing.assert_allclose(side[:4], of_alone[:4], atol=1e-5)
        assert np.ptp(side[:4]) > 0.1
    # What stands in B does not touch A, to the bit.
    changed = [pair._replace(b=[*pair.b[:-1], 5, 2]) for pair in shared_pairs]
    others = scores(random_model.params, random_model.config, fill_shared(changed, 6, 24))
    np.testing.assert_array_equal(others[0][:4], found[0][:4])
    assert np.abs(others[1][:4] - found[1][:4]).min() > 1e-3


def test_shared_prompts_train_as_texts_alone_do(model, tmp_path):
    write_records(tmp_path / "pairs.jsonl", draw_comparisons(24, seed=6))
    inputs = {"model": model, "comparisons": tmp_path / "pairs.jsonl"}
    runs = []
    for name, shared in (("alone", False), ("shared", True)):
        counts = run(
            tmp_path / name / "pm", inputs, pairs=8, epochs=2, log_every=1, shared_prompts=shared
        )
        runs.append((counts, read_metrics(tmp_path / name / "pm")))
    assert runs[0][0] == pytest.approx(runs[1][0])
    for alone, shared in zip(runs[0][1], runs[1][1], strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
