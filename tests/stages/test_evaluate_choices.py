import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import scripted
from ml_collections import ConfigDict

from cai_jax.data.choices import read_choices
from cai_jax.data.schema import Choice, read_records
from cai_jax.errors import InputError
from cai_jax.stages import evaluate_choices
from cai_jax.text.prompts import SO_THE_ANSWER, STEP_BY_STEP, multiple_choice

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
OFFICIAL = {
    "hhh": SHARED / "paper/official/evals/438HHHEvaluations.jsonl",
    "ethical": SHARED / "paper/official/evals/HarmfulVsEthical.jsonl",
    "types": SHARED / "paper/official/evals/HarmfulnessClassification.jsonl",
}
LETTERS = (" (A)", " (B)", " (C)")


def pair(number, right):
    """A comparison whose right answer says so; two in a row share their context."""
    human = f"\n\nHuman: q{number // 2}"
    said = {True: f"right {number}", False: f"wrong{number} {number}"}
    turn = scripted_turn(f"q{number // 2}")
    prompt = multiple_choice([turn], "Choose.", said[right == 0], said[right == 1])
    return {
        "prompt": prompt,
        "corrects": [LETTERS[right]],
        "incorrects": [LETTERS[1 - right]],
        "text_correct": f"{human}\n\nAssistant: {said[True]}",
        "text_incorrect": f"{human}\n\nAssistant: {said[False]}",
    }


def scripted_turn(text):
    from cai_jax.data.schema import Turn

    return Turn("human", text)


def kind(number, right):
    lines = "".join(f"\n{letter} option {letter[2]}" for letter in LETTERS)
    prompt = f"Conversation {number}, right {LETTERS[right][2]}\n\nWhich?{lines}\nThe answer is:"
    others = [letter for letter in LETTERS if letter != LETTERS[right]]
    return {"prompt": prompt, "corrects": [LETTERS[right]], "incorrects": others}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path):
    pairs = [pair(number, number % 2) for number in range(6)]
    kinds = [kind(number, number % 3) for number in range(5)]
    return {
        "pairs": write(tmp_path / "pairs.jsonl", pairs),
        "kinds": write(tmp_path / "kinds.jsonl", kinds),
    }


def choose(monkeypatch, rule):
    """Multiple choices are answered by rule(text, number of options) -> probabilities."""
    from cai_jax.generation import score

    asked = []

    def choice_logprobs(model, prompts, choices, **_):
        assert tuple(map(model.tokenizer.decode, choices)) == LETTERS[: len(choices)]
        texts = [model.tokenizer.decode(prompt) for prompt in prompts]
        asked.extend(texts)
        return np.log(np.array([rule(text, len(choices)) for text in texts], np.float32))

    monkeypatch.setattr(score, "choice_logprobs", choice_logprobs)
    return asked


def right_of(text):
    """The index of the right option of the last question in a text."""
    question = text.split("Consider the following")[-1].split("Conversation ")[-1]
    if marked := re.match(r"\d+, right ([A-C])", question):
        return "ABC".index(marked[1])
    return int("(A) [[[wrong" in question)


def run(folder, inputs, **changes):
    changes = {"num_resamples": 100} | changes
    counts = scripted.run_stage(evaluate_choices, folder, inputs, **changes)
    found = json.loads((folder / "evaluation.json").read_text())
    return counts, found["sets"], read_records(folder / "choices.jsonl", Choice)


def test_accuracy_log_loss_and_calibration_of_known_answers(tmp_path, files, monkeypatch):
    scripted.speak(monkeypatch, lambda text, n: "")

    def rule(text, count):
        # Sure and right, but for "q1" and conversations 3 and 4; half its mass is elsewhere.
        fails = "q1" in text or re.search(r"Conversation [34]", text)
        p = np.full(count, 0.2 / (count - 1))
        p[(right_of(text) + bool(fails)) % count] = 0.8
        return 0.5 * p

    asked = choose(monkeypatch, rule)
    inputs = {"model": "m", "evaluations": files}
    counts, sets, choices = run(tmp_path / "e", inputs, modes=("zero_shot",))
    questions = [q for name in files for q in read_choices(files[name])]
    assert asked == [question.prompt for question in questions]  # byte for byte
    pairs, kinds = sets["pairs"]["zero_shot"], sets["kinds"]["zero_shot"]
    assert pairs["accuracy"] == pytest.approx(4 / 6) and kinds["accuracy"] == pytest.approx(3 / 5)
    assert pairs["log_loss"] == pytest.approx(-(4 * math.log(0.8) + 2 * math.log(0.2)) / 6)
    assert kinds["log_loss"] == pytest.approx(-(3 * math.log(0.8) + 2 * math.log(0.1)) / 5)
    assert pairs["ece"] == pytest.approx(0.8 - 4 / 6) and pairs["contexts"] == 3
    assert pairs["mass"] == pytest.approx(0.5)
    assert pairs["calibration"] == [
        {"probability": pytest.approx(0.8), "frequency": pytest.approx(4 / 6), "n": 6}
    ]
    # 10 options of 0.1: right in two questions. 5 of 0.8: right in three.
    low, high = kinds["option_calibration"]
    assert (low["n"], low["frequency"], high["n"]) == (10, pytest.approx(0.2), 5)
    assert kinds["by_answer"]["option A"]["accuracy"] == 0.5  # conversations 0 and 3
    assert pairs["by_answer"]["(A)"]["n"]["accuracy"] == 3
    assert counts["records"] == 11 and counts["pairs/zero_shot"] == pairs["accuracy"]
    assert counts["tokens"] == sum(map(len, asked))
    assert [choice.context for choice in choices[:6]] == [f"pairs-{i}" for i in (0, 0, 2, 2, 4, 4)]
    one = choices[2]
    assert (one.correct, one.chosen, one.mass) == (0, 1, pytest.approx(0.5))
    assert one.probabilities == pytest.approx((0.2, 0.8)) and one.reasonings == ()


def test_few_shots_come_from_the_constitution_or_from_the_file(tmp_path, files, monkeypatch):
    scripted.speak(monkeypatch, lambda text, n: "")
    asked = choose(monkeypatch, lambda text, count: np.full(count, 1 / count))
    constitution = scripted.write_constitution(tmp_path / "constitution.json")
    inputs = {"model": "m", "evaluations": files, "constitution": constitution}
    run(tmp_path / "e", inputs, modes=("few_shot",), num_few_shots=2)
    assert all(text.count("The answer is:") == 3 for text in asked)
    assert all("Human: q0\n\n\nChoose. Options:" in text for text in asked[:6])
    for number, text in enumerate(asked[6:]):
        shots = re.findall(
            r"Conversation (\d), right ([A-C]).*?The answer is: \(([A-C])\)", text, 16
        )
        assert len(shots) == 2 and str(number) not in {shot for shot, _, _ in shots}
        assert all(right == answer for _, right, answer in shots)
    # A question's few-shots are its own: no matter which others are asked.
    few = list(asked)
    asked.clear()
    run(tmp_path / "again" / "e", inputs, modes=("few_shot",), num_few_shots=2, limit=2)
    assert asked == few[:2] + few[6:8]
    # Without a constitution, comparisons of other contexts.
    asked.clear()
    files = {"pairs": files["pairs"]}
    run(tmp_path / "f", {"model": "m", "evaluations": files}, modes=("few_shot",), num_few_shots=9)
    assert all(text.count("The answer is:") == 5 for text in asked)
    assert all(text.count("Human: q0") == 1 for text in asked[:2])


def test_reasoning_and_its_ensemble(tmp_path, files, monkeypatch):
    said = scripted.speak(monkeypatch, lambda text, n: f" thought {n}\n\nHuman: more")

    def rule(text, count):
        # The first of three reasonings is wrong, the others are right and surer.
        number = int(re.search(r"thought (\d+)", text)[1])
        p = {0: 0.4, 1: 0.9, 2: 0.8}[number % 3]
        p = np.array([p, 1 - p])
        return p if right_of(text) == 0 else p[::-1]

    asked = choose(monkeypatch, rule)
    inputs = {"model": "m", "evaluations": {"pairs": files["pairs"]}}
    inputs["constitution"] = scripted.write_constitution(tmp_path / "constitution.json")
    modes = ("chain_of_thought", "ensembled_chain_of_thought")
    changes = {"num_samples": 3, "num_few_shots": 1, "max_reasoning_tokens": 40}
    counts, sets, choices = run(tmp_path / "e", inputs, modes=modes, **changes)
    assert len(said) == len(asked) == 18
    assert len({key for *_, key in said}) == 18 and said[0][1].max_new_tokens == 40
    text = said[4][0]
    assert text.startswith("\n\nHuman: Consider\n\nH: q0\n\n\nChoose. Options:")
    assert text.endswith(f" (B) [[[right 1]]]{STEP_BY_STEP}")
    assert asked[4] == f"{text} thought 4{SO_THE_ANSWER}"
    one, ensemble = (sets["pairs"][mode] for mode in modes)
    assert one["accuracy"] == 0 and ensemble["accuracy"] == 1
    assert one["log_loss"] == pytest.approx(-math.log(0.4))
    assert ensemble["log_loss"] == pytest.approx(-math.log(0.7))
    assert choices[1].reasonings == ("thought 3",)
    assert choices[7].reasonings == ("thought 3", "thought 4", "thought 5")
    assert counts["tokens"] == 18 * len(" thought 0\n\nHuman: more") + 8 + 18 * 0 + sum(
        map(len, asked)
    )
    # One reasoning alone is the ensemble's first.
    said.clear()
    _, alone, _ = run(tmp_path / "again" / "e", inputs, modes=modes[:1], **changes)
    assert len(said) == 6


def test_questions_that_do_not_fit_are_refused_or_counted(tmp_path, files, monkeypatch):
    longest = max(len(q.prompt) for q in read_choices(files["pairs"]))
    scripted.speak(monkeypatch, lambda text, n: "x", max_positions=longest + 4)
    choose(monkeypatch, lambda text, count: np.full(count, 1 / count))
    inputs = {"model": "m", "evaluations": {"pairs": files["pairs"]}}
    counts, _, _ = run(tmp_path / "a", inputs, modes=("zero_shot", "few_shot"), num_few_shots=1)
    assert counts["few_shots_dropped"] == 6 and counts["too_long"] == 0
    with pytest.raises(InputError, match=r"evaluations.pairs: expected at most \d+ tokens"):
        run(tmp_path / "b", inputs, modes=("chain_of_thought",))
    counts, sets, _ = run(tmp_path / "c", inputs, on_long="drop", max_reasoning_tokens=1)
    assert counts["too_long"] == 6 and "chain_of_thought" not in sets["pairs"]


def write_words(folder):
    """A tokenizer of whole words, so that the paper's long questions are a few hundred tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[END]": 1, "(A)": 2}
    for path in OFFICIAL.values():
        if path.is_file():
            for word in path.read_text(encoding="utf-8").replace("\\n", " ").split()[:3000]:
                words.setdefault(word, len(words))
    for letter in "BCDEFGHI":
        words.setdefault(f"({letter})", len(words))
    for number in range(6):
        words.setdefault(f"wrong{number}", len(words))
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]")
    fast.save_pretrained(str(folder))
    return len(words)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random language model and a random preference model that read words."""
    import jax

    from cai_jax.models import transformer, weights
    from cai_jax.models.config import ModelConfig

    shape = {"width": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16, "hidden": 16}
    folders = []
    for number, name in enumerate(("model", "preference_model")):
        folders.append(tmp_path_factory.mktemp(name))
        config = ModelConfig(vocab_size=write_words(folders[-1]), max_positions=1536, **shape)
        key = jax.random.key(number)
        params = jax.jit(transformer.init_params, static_argnums=0)(config, key)
        if number:
            params = transformer.add_score_head(params, config, key)
        weights.write_folder(folders[-1], config, params)
    return folders


def test_a_preference_model_chooses_by_its_scores(tmp_path, files, models):
    from cai_jax import checkpoints
    from cai_jax.generation.preference import preference_scores

    inputs = {"preference_model": models[1], "evaluations": files}
    counts, sets, choices = run(tmp_path / "e", inputs)
    assert list(sets) == ["pairs"] and list(sets["pairs"]) == ["preference_model"]
    model = checkpoints.load_model(models[1])
    for question, choice in zip(read_choices(files["pairs"]), choices, strict=True):
        texts = [[*model.tokenizer.encode(t), model.tokenizer.eos_id] for t in question.texts]
        scores = preference_scores(model, texts)
        assert choice.scores == pytest.approx(scores.tolist(), abs=1e-5)
        assert choice.chosen == scores.argmax() and choice.mass is None
        p = 1 / (1 + math.exp(-(choice.scores[0] - choice.scores[1])))
        assert choice.probabilities == pytest.approx((p, 1 - p))
        right, wrong = scores[question.correct], scores[1 - question.correct]
        assert (choice.chosen == choice.correct) == (right > wrong)
    assert counts["tokens"] == 6 * 2 * 6  # "Human: q0 Assistant: right 0" and the end


def test_the_papers_own_files_against_a_slow_recomputation(tmp_path, models):
    missing = [path for path in OFFICIAL.values() if not path.is_file()]
    if missing:
        pytest.skip(f"the paper's official evaluations are not at {missing[0].parent}")
    from cai_jax import checkpoints
    from cai_jax.models import transformer

    inputs = {"model": models[0], "preference_model": models[1], "evaluations": OFFICIAL}
    counts, sets, choices = run(tmp_path / "e", inputs, modes=("zero_shot",), batch_size=64)
    of_model = [choice for choice in choices if choice.mode == "zero_shot"]
    sizes = {"hhh": 438, "ethical": 254, "types": 287}
    assert {n: sets[n]["zero_shot"]["n"]["accuracy"] for n in sets} == sizes
    assert sets["hhh"]["preference_model"]["n"]["accuracy"] == 438
    assert sets["hhh"]["zero_shot"]["contexts"] == 188
    assert len(sets["types"]["zero_shot"]["by_answer"]) == 9
    assert counts["records"] == 438 + 254 + 287 + 438 and counts["too_long"] == 0
    for name, path in OFFICIAL.items():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        of_set = [choice for choice in of_model if choice.evaluation == name]
        right = 0
        for row, choice in zip(rows, of_set, strict=True):
            likeliest = choice.options[int(np.argmax(choice.probabilities))]
            right += likeliest == row["corrects"][0]
            assert choice.options[choice.correct] == row["corrects"][0]
            assert sum(choice.probabilities) == pytest.approx(1)
        assert sets[name]["zero_shot"]["accuracy"] == pytest.approx(right / len(rows))
        assert counts[f"{name}/zero_shot"] == pytest.approx(right / len(rows))

    # A question of nine options, token by token through the whole model.
    model = checkpoints.load_model(models[0])
    choice = next(choice for choice in of_model if choice.evaluation == "types")
    ids = model.tokenizer.encode(read_choices(OFFICIAL["types"], 1)[0].prompt)
    totals = []
    for option in choice.options:
        end = model.tokenizer.encode(option)
        tokens = np.array([[*ids, *end]])
        hidden, _ = transformer.forward(model.params, model.config, tokens)
        logits = np.asarray(transformer.logits(model.params, model.config, hidden), np.float64)
        logp = logits[0] - np.logaddexp.reduce(logits[0], axis=-1, keepdims=True)
        totals.append(sum(logp[len(ids) + n - 1, token] for n, token in enumerate(end)))
    p = np.exp(totals - np.logaddexp.reduce(totals))
    assert choice.probabilities == pytest.approx(p.tolist(), abs=1e-4)
    assert choice.mass == pytest.approx(np.exp(totals).sum(), rel=1e-3)


def test_bad_configs_are_refused():
    def config(**changes):
        config = evaluate_choices.default_config()
        config.update(ConfigDict(changes))
        return config

    good = {"model": "m", "evaluations": {"a": "f"}}
    evaluate_choices.check(config(), good)
    for inputs, changes, message in [
        ({"model": "m"}, {}, "inputs.evaluations: expected a dict"),
        ({"evaluations": {"a": "f"}}, {}, "expected a model, a preference_model or both"),
        (good, {"modes": ("zero",)}, "modes: expected some of zero_shot"),
        (good, {"modes": ()}, "modes: expected at least one"),
        (good, {"on_long": "cut"}, "on_long: expected one of"),
        (good, {"num_samples": 0}, "num_samples: expected at least 1, found 0"),
        (good, {"level": 1.0}, "level: expected more than 0"),
        (good, {"temperature": -1.0}, "temperature: expected 0 or more"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate_choices.check(config(**changes), inputs)


def test_the_plan_counts_questions_tokens_and_flops():
    config = evaluate_choices.default_config()
    config.limit, config.num_samples, config.max_reasoning_tokens = 50, 3, 10
    planned = {
        "evaluations": {"a": {"records": 100, "tokens": 2000}, "b": {"records": 10, "tokens": 30}},
        "model": {"parameters": 7},
        "preference_model": {"parameters": 5},
    }
    found = evaluate_choices.plan(config, planned)
    read = 1030 * (2 + 6) + 2 * 3 * 60 * 10
    assert found == {
        "records": 60 * 5,
        "tokens": read + 1030,
        "flops": 2.0 * 7 * read + 2.0 * 5 * 1030,
    }


def test_files_that_an_interrupted_step_has_finished_are_not_asked_about_again(
    tmp_path, files, monkeypatch
):
    spoken = scripted.speak(monkeypatch, lambda text, key: f" since {key[-1]}.", by_key=True)
    left = [10**9]

    def rule(text, count):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return np.full(count, 0.7 / count)

    asked = choose(monkeypatch, rule)
    inputs, changes = {"model": tmp_path, "evaluations": files}, {"num_samples": 2}
    expected = run(tmp_path / "whole" / "step", inputs, **changes)
    all_asked, all_spoken = list(asked), [key for _, _, key in spoken]
    of_pairs, said_of_pairs = 6 * (1 + 1 + 2), 6 * 2
    folder = tmp_path / "stopped" / "step"
    left[0] = of_pairs + 3
    with pytest.raises(KeyboardInterrupt):
        run(folder, inputs, **changes)
    left[0] = 10**9
    asked.clear()
    spoken.clear()
    assert run(folder, inputs, **changes) == expected
    assert asked == all_asked[of_pairs:]
    assert [key for _, _, key in spoken] == all_spoken[said_of_pairs:]
