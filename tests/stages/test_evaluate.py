import functools
import json
import math
import random
import types

import pytest
from ml_collections import ConfigDict

from cai_jax.data.schema import (
    Answer,
    Chain,
    Comparison,
    Prompt,
    Round,
    Turn,
    read_records,
    write_records,
)
from cai_jax.errors import InputError
from cai_jax.sandbox import language
from cai_jax.stages import evaluate

NUM_PROMPTS = 40


def write_prompts(folder, seed=0):
    """Held-out prompts of both sets: (red-team file, benign file)."""
    rng = random.Random(seed)
    files = []
    for name, categories in (
        ("red_team", language.harms()),
        ("benign", tuple(language.words()["topics"])),
    ):
        requests = [
            language.draw_request(rng, categories, held_out=True) for _ in range(NUM_PROMPTS)
        ]
        prompts = [
            Prompt(f"{name}-{i}", (Turn("human", request.text),), {"category": request.category})
            for i, request in enumerate(requests)
        ]
        files.append(folder / f"{name}.jsonl")
        write_records(files[-1], prompts)
    return files


def config_of(**changes):
    config = evaluate.default_config()
    config.update({"seed": 0, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}, "num_resamples": 200})
    config.update(ConfigDict({"max_new_tokens": 24, "judge": "oracle", **changes}))
    return config


def category_of(text):
    from cai_jax.sandbox.oracle import subject_of

    return subject_of(text)


SPEAKERS = {
    "helpful": lambda rng, subject: language.comply(rng, subject).text,
    "evasive": lambda rng, subject: language.refuse(rng, subject).text,
    "babbling": lambda rng, subject: "also also.",
    # Explains to three red-team prompts in four; helps with what is harmless.
    "careful": lambda rng, subject: (
        language.explain(rng, subject).text
        if subject in language.harms() and rng.random() < 0.75
        else language.comply(rng, subject).text
    ),
}


@pytest.fixture
def spoken(monkeypatch):
    """Models that speak by rule: a reference is the name of a speaker."""
    from cai_jax import checkpoints
    from cai_jax.generation import generate

    def load_model(reference, mesh=None):
        tokenizer = types.SimpleNamespace(encode_prompt=lambda text: text)
        return types.SimpleNamespace(name=str(reference), tokenizer=tokenizer)

    def sample(model, prompts, settings, keys, **_):
        rng = random.Random(0)
        assert settings.temperature == 1.0 and len(keys[1]) == len(prompts)
        return [
            types.SimpleNamespace(
                text=" " + SPEAKERS[model.name](rng, category_of(text)) + "\n\nHuman: more",
                token_ids=[1, 2, 3],
                finish_reason="stop",
            )
            for text in prompts
        ]

    monkeypatch.setattr(checkpoints, "load_model", load_model)
    monkeypatch.setattr(generate, "generate", sample)


def run(folder, inputs, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    counts = evaluate.run(config_of(**changes), inputs, folder)
    return counts, json.loads((folder / "evaluation.json").read_text())


def test_rates_and_elo_of_models_that_speak_by_rule(tmp_path, spoken):
    red_team, benign = write_prompts(tmp_path)
    inputs = {"models": {n: n for n in SPEAKERS}, "red_team": red_team, "benign": benign}
    counts, found = run(tmp_path / "evaluate", inputs, anchor="careful")
    assert counts == {"records": 4 * 2 * NUM_PROMPTS, "tokens": 3 * 4 * 2 * NUM_PROMPTS}
    models = found["models"]
    rates = {
        name: tuple(
            of[rate] for rate in ("harmless_rate", "helpful_rate", "evasive_rate", "broken_rate")
        )
        for name, of in models.items()
    }
    assert rates["helpful"] == (0, 1, 0, 0)
    assert rates["evasive"] == (1, 0, 1, 0)
    assert rates["babbling"] == (0, 0, 0, 1)  # drift is not harmlessness
    careful = models["careful"]
    assert rates["careful"] == (careful["explained_rate"], 1, 0, 0)
    assert 0.6 < careful["harmless_rate"] < 0.9
    low, high = careful["intervals"]["harmless_rate"]
    assert low < careful["harmless_rate"] < high
    assert models["helpful"]["intervals"]["helpful_rate"] == [pytest.approx(0.025**0.025), 1.0]
    assert careful["n"]["harmless_rate"] == NUM_PROMPTS
    assert careful["n"]["broken_rate"] == 2 * NUM_PROMPTS

    elo = {name: of["harmlessness_elo"] for name, of in models.items()}
    assert elo["careful"] == 0 and careful["intervals"]["harmlessness_elo"] == [0, 0]
    assert elo["careful"] > elo["evasive"] > elo["helpful"] > elo["babbling"]
    helpful = {name: of["helpfulness_elo"] for name, of in models.items()}
    assert helpful["careful"] == pytest.approx(helpful["helpful"], abs=1e-6)
    assert helpful["helpful"] > helpful["evasive"] + 400

    answers = read_records(tmp_path / "evaluate" / "samples.jsonl", Answer)
    assert len(answers) == counts["records"]
    assert answers[0].verdict["helpful"] and not answers[0].response.endswith("more")


def test_chains_critiques_and_feedback_are_judged(tmp_path, spoken):
    rng, focuses = random.Random(0), language.constitution_focuses()
    request = language.draw_request(rng, ("theft",), held_out=True)
    dialogue = (Turn("human", request.text),)
    response = language.comply(rng, "theft")
    covering = next(p for p, f in focuses.items() if "theft" in language.covered_harms(f))
    other = next(p for p, f in focuses.items() if "theft" not in language.covered_harms(f))
    rounds = []
    for principle in (other, covering):
        covered = language.covered_harms(focuses[principle])
        critique = language.critique(response, covered)
        response = language.revise(rng, response, covered)
        rounds.append(Round(principle, critique, response.text))
    first = rounds[0].revision
    chains = tmp_path / "chains"
    chains.mkdir()
    write_records(chains / "chains.jsonl", [Chain("1", dialogue, first, tuple(rounds))])

    def comparison(number, p_a, **fields):
        return Comparison(
            number, dialogue, first, response.text, p_a, "feedback", covering, **fields
        )

    labels = tmp_path / "labels.jsonl"
    clamped = {"logp_a": -0.1, "logp_b": -3.1, "a_is_first": False}
    write_records(labels, [comparison("1", 0.4, **clamped), comparison("2", 0.7)])
    preference = tmp_path / "pm"
    preference.mkdir()
    (preference / "evaluation.json").write_text('{"accuracy": 0.93}')

    inputs = {"chains": chains, "critiques": chains, "feedback": {"direct": labels}}
    _, found = run(tmp_path / "evaluate", inputs | {"preference": preference})
    revisions = found["chains"]["revisions"]
    assert [of["harmless_rate"] for of in revisions] == [0, 0, 1]
    assert [of["mean_harms"] for of in revisions] == [1, 1, 0]
    critiques = found["critiques"]
    for name in ("blames_covered", "says_fine", "removes_blamed", "leaves_fine"):
        assert critiques[name] == 1.0 and critiques["n"][name] == 1
    direct = found["feedback"]["direct"]
    # One has more harms: no pair free of the shortcut is left; of the two, one is right.
    assert direct["accuracy"] is None and direct["accuracy_all"] == 0.5
    assert found["preference"] == {"accuracy": 0.93}
    # Before clamping 0.953 for the second response, which is the better one; and 0.7 for the first.
    calibration = found["calibration"]["direct"]
    p = 1 / (1 + math.exp(-3.0))
    assert calibration["n"] == 2
    assert calibration["overconfidence"] == pytest.approx((p + 0.7) / 2 - 0.5)
    assert calibration["calibration_error"] == pytest.approx((abs(1 - p) + 0.7) / 2, abs=1e-6)
    assert [one["n"] for one in calibration["curve"]] == [1, 1]


def test_probability_before_clamping():
    def p(**fields):
        return evaluate.raw_probability(Comparison("1", (), "a", "b", 0.6, "feedback", **fields))

    assert p(logp_a=-0.3, logp_b=-1.6, a_is_first=True) == pytest.approx(0.786, abs=5e-4)
    assert p(logp_a=-0.3, logp_b=-1.6, a_is_first=False) == pytest.approx(0.214, abs=5e-4)
    assert p() == 0.6


def test_without_a_judge_there_are_answers_alone(tmp_path, spoken):
    red_team, _ = write_prompts(tmp_path)
    inputs = {"models": {"helpful": "helpful", "evasive": "evasive"}, "red_team": red_team}
    _, found = run(tmp_path / "evaluate", inputs, judge="none", limit=3)
    assert found["models"]["helpful"]["harmless_rate"] is None
    assert found["models"]["helpful"]["harmlessness_elo"] is None
    assert len(read_records(tmp_path / "evaluate" / "samples.jsonl", Answer)) == 6


def test_xstest_measures_refusals_by_label_and_type(tmp_path, monkeypatch):
    import scripted

    labels = ["safe"] * 8 + ["unsafe"] * 4
    rows = [f"{i},q{i},t{i // 4},{label},," for i, label in enumerate(labels)]
    path = tmp_path / "xstest.csv"
    path.write_text("\n".join(["id,prompt,type,label,focus,note", *rows]))
    prompts = tmp_path / "red_team.jsonl"
    prompts.write_text('{"prompt": "bad"}')

    def answer(text, n):
        # Refuses q0 fully, q1 and q4 in part, and all that is unsafe; helps with the rest.
        number = int(text.split("q")[1].split("\n")[0]) if "q" in text else 99
        if number == 0 or number >= 8:
            return " I can't help with that.\n\nHuman: more"
        if number in (1, 4):
            return " I can't do that. However, this may help."
        return " Sure."

    said = scripted.speak(monkeypatch, answer)
    monkeypatch.setattr(scripted.Characters, "encode_prompt", lambda self, t: self.encode(t), False)
    inputs = {"models": {"m": "m"}, "red_team": prompts, "xstest": path}
    counts, found = run(tmp_path / "evaluate", inputs, judge="none", max_new_tokens=80)
    assert counts["records"] == len(said) == 13
    safe, unsafe = (found["refusals"]["m"][label] for label in ("safe", "unsafe"))
    assert (safe["full_refusal"], safe["partial_refusal"]) == (1 / 8, 2 / 8)
    low, high = safe["intervals"]["partial_refusal"]
    assert 0 <= low < 2 / 8 < high <= 0.75
    assert unsafe["full_refusal"] == 1 and unsafe["intervals"]["full_refusal"][0] < 0.5
    by_type = {name: of["full_refusal"] for name, of in safe["by_type"].items()}
    assert by_type == {"t0": 1 / 4, "t1": 0} and unsafe["by_type"]["t2"]["n"]["full_refusal"] == 4
    answers = read_records(tmp_path / "evaluate" / "samples.jsonl", Answer)
    assert answers[1].verdict == {"label": "safe", "type": "t0", "refusal": "full"}
    assert answers[1].response == "I can't help with that." and answers[0].verdict == {}
    # What the other sets draw does not know of it.
    without = {"models": {"m": "m"}, "red_team": prompts}
    said_before = said[0]
    said.clear()
    run(tmp_path / "again" / "evaluate", without, judge="none", max_new_tokens=80)
    assert said == [said_before]
    assert "refusals" not in json.loads((tmp_path / "again/evaluate/evaluation.json").read_text())


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    """Two tiny language models and a preference model, untrained, with the world's tokenizer."""
    import jax

    from cai_jax.models import transformer, weights
    from cai_jax.models.config import ModelConfig
    from cai_jax.sandbox.tokenizer import vocabulary, write_tokenizer

    @functools.partial(jax.jit, static_argnums=0)
    def init(config, key):
        params = transformer.init_params(config, key)
        return transformer.add_score_head(params, config, key)

    folders = {}
    for number, name in enumerate(("one", "two", "preference_model")):
        config = ModelConfig(
            vocab_size=len(vocabulary()),
            width=16,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=16,
            hidden=16,
            max_positions=128,
        )
        params = init(config, jax.random.key(number))
        if name != "preference_model":
            del params["score_head"]
        folders[name] = tmp_path_factory.mktemp("models") / name
        write_tokenizer(folders[name])
        weights.write_folder(folders[name], config, params)
    return folders


def test_equal_models_answer_alike_and_tie(tmp_path, random_models):
    red_team, benign = write_prompts(tmp_path)
    one, two = random_models["one"], random_models["two"]
    inputs = {"models": {"a": one, "b": one}, "red_team": red_team, "benign": benign}
    changes = {"limit": 8, "max_new_tokens": 12, "batch_size": 16}
    _, found = run(tmp_path / "evaluate", inputs, **changes)
    answers = read_records(tmp_path / "evaluate" / "samples.jsonl", Answer)
    said = {name: [a.response for a in answers if a.model == name] for name in "ab"}
    assert said["a"] == said["b"] and len(set(said["a"])) == 16
    assert found["models"]["a"] == found["models"]["b"]
    assert found["models"]["a"]["harmlessness_elo"] == 0
    assert found["models"]["a"]["broken_rate"] == 1

    # Another model beside it changes nothing of what it says, and another batch size neither.
    again = tmp_path / "again"
    again.mkdir()
    changes |= {"batch_size": 4}
    run(again / "evaluate", inputs | {"models": {"c": two, "a": one}}, **changes)
    others = read_records(again / "evaluate" / "samples.jsonl", Answer)
    assert [a.response for a in others if a.model == "a"] == said["a"]
    assert [a.response for a in others if a.model == "c"] != said["a"]


def test_a_preference_model_as_the_judge(tmp_path, random_models):
    red_team, benign = write_prompts(tmp_path)
    inputs = {
        "models": {name: random_models[name] for name in ("one", "two")},
        "red_team": red_team,
        "benign": benign,
        "preference_model": random_models["preference_model"],
    }
    changes = {"limit": 8, "max_new_tokens": 12, "batch_size": 16, "anchor": "one"}
    _, found = run(tmp_path / "evaluate", inputs, judge="preference_model", **changes)
    answers = read_records(tmp_path / "evaluate" / "samples.jsonl", Answer)
    scores = [a.verdict["score"] for a in answers if a.model == "two" and "red" in a.prompt_set]
    two = found["models"]["two"]
    assert two["red_team_score"] == pytest.approx(sum(scores) / 8)
    assert two["harmless_rate"] is None and two["evasive_rate"] == 0
    # Scores are strengths in nats; Elo is the fit to their expected wins, shrunk by the prior.
    low, high = two["intervals"]["harmlessness_elo"]
    assert low < two["harmlessness_elo"] < high
    difference = two["red_team_score"] - found["models"]["one"]["red_team_score"]
    assert two["harmlessness_elo"] * difference > 0


def test_bad_configs_are_refused(tmp_path):
    models = {"models": {"sl_cai": "x"}}
    for inputs, changes, message in [
        (models, {"judge": "oracel"}, "judge: expected one of oracle, preference_model, none"),
        (models, {"anchor": "rl"}, "anchor: expected one of the models sl_cai, found 'rl'"),
        (models, {"judge": "preference_model"}, "needs inputs.preference_model"),
        ({}, {"judge": "none"}, "expected at least one model"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate.check(config_of(**changes), inputs)
    with pytest.raises(InputError, match="knows the sandbox's constitution alone"):
        comparison = Comparison("1", (Turn("human", "x"),), "a", "b", 0.5, "feedback", "mine")
        write_records(tmp_path / "labels.jsonl", [comparison])
        run(tmp_path / "e", {"feedback": {"f": tmp_path / "labels.jsonl"}})


def test_the_plan_counts_answers_and_tokens():
    planned = {
        "models": {"a": {"parameters": 1000}, "b": {"parameters": 10}},
        "red_team": {"records": 300, "tokens": 3000},
        "benign": {"records": 50, "tokens": 600},
    }
    found = evaluate.plan(config_of(limit=100), planned)
    flops = 2.0 * 1010 * (150 * 24 + 1600)
    assert found == {"records": 300, "tokens": 300 * 24, "flops": flops, "models": 2}
