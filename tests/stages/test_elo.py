import json
import math
import random

import numpy as np
import pytest
import scripted
from ml_collections import ConfigDict

from cai_jax.algorithms.elo import ELO_PER_NAT, fit_elo, win_probability
from cai_jax.data.schema import Comparison, Judgement, Pair, Turn, read_records, write_records
from cai_jax.errors import InputError
from cai_jax.stages import elo, feedback

STRENGTHS = {"one": 0.0, "two": 120.0, "three": -80.0}
NUM_PROMPTS = 80


def write_pairs(folder, prompt_set="red_team", num_prompts=NUM_PROMPTS, models=tuple(STRENGTHS)):
    rng = random.Random(prompt_set)
    pairs = []
    for number in range(num_prompts):
        for i, first in enumerate(models):
            for second in models[i + 1 :]:
                a, b = (first, second) if rng.random() < 0.5 else (second, first)
                tags = {"prompt_set": prompt_set, "prompt": f"{number}", "model_a": a, "model_b": b}
                dialogue = (Turn("human", f"tell me about the bike {number}"),)
                id = f"p{prompt_set[0]}{number}{first[0]}{second[1]}"
                pairs.append(Pair(id, dialogue, f"{a} {number}", f"{b} {number}", tags))
    folder.mkdir()
    write_records(folder / "pairs.jsonl", pairs)
    return pairs


def votes_of(pairs, seed=0, ties=0.1):
    """What a person says who prefers models by their strengths."""
    rng = random.Random(seed)
    for pair in pairs:
        gap = STRENGTHS[pair.tags["model_a"]] - STRENGTHS[pair.tags["model_b"]]
        better = rng.random() < win_probability(gap)
        yield pair.id, "tie" if rng.random() < ties else "a" if better else "b"


def write_votes(path, votes):
    path.write_text("id,choice\n" + "".join(f"{id},{choice}\n" for id, choice in votes))
    return path


def run(folder, inputs, **changes):
    changes = {"num_resamples": 200} | changes
    counts = scripted.run_stage(elo, folder, inputs, **changes)
    judgements = read_records(folder / "judgements.jsonl", Judgement)
    return counts, json.loads((folder / "evaluation.json").read_text()), judgements


def wins(pairs, p_of):
    """A slow count: who won how much against whom."""
    names = list(STRENGTHS)
    found = np.zeros((3, 3))
    for pair in pairs:
        if (p := p_of.get(pair.id)) is not None:
            a, b = (names.index(pair.tags[side]) for side in ("model_a", "model_b"))
            found[a, b] += p
            found[b, a] += 1 - p
    return found


def ratings(found, judge, rating, names=tuple(STRENGTHS)):
    return [found["judges"][judge]["models"][name][rating] for name in names]


def test_people(tmp_path):
    pairs = write_pairs(tmp_path / "harm")
    more = write_pairs(tmp_path / "help", "benign", 5)
    ann, bob = list(votes_of(pairs)), list(votes_of(pairs[:60], seed=1))
    help_votes = [(pair.id, "a") for pair in more]
    files = [
        write_votes(tmp_path / "ann.csv", [*ann, ann[0], (pairs[0].id, "")]),
        write_votes(tmp_path / "bob.csv", bob),
        write_votes(tmp_path / "cam.csv", help_votes),
    ]
    inputs = {"pairs": [tmp_path / "harm", tmp_path / "help"], "votes": files}
    counts, found, judgements = run(tmp_path / "elo", inputs, anchor="one")
    said = {"a": 1.0, "b": 0.0, "tie": None}
    ties = [choice for _, choice in ann + bob].count("tie")
    assert counts == {
        "records": len(ann + bob + help_votes),
        "tokens": 0,
        "ties": ties,
        "unjudged": 1,
        "duplicates": 1,
    }
    assert (judgements[0].annotator, judgements[0].judge) == ("ann.csv", "people")
    assert judgements[0].p_a == said[ann[0][1]]
    games = sum(wins(pairs, {id: said[choice] for id, choice in person}) for person in (ann, bob))
    fit = fit_elo(games, anchor=0).ratings
    assert ratings(found, "people", "harmlessness_elo") == pytest.approx(fit.tolist())
    of_two = found["judges"]["people"]["models"]["two"]
    low, high = of_two["intervals"]["harmlessness_elo"]
    assert low < of_two["harmlessness_elo"] < high
    assert of_two["n"]["harmlessness_elo"] == (games + games.T)[1].sum()
    helpful = wins(more, {pair.id: 1.0 for pair in more})
    assert ratings(found, "people", "helpfulness_elo") == pytest.approx(
        fit_elo(helpful, anchor=0).ratings.tolist()
    )
    assert found["judges"]["people"]["ratings"]["harmlessness_elo"] == {
        "judgements": len(ann + bob),
        "ties": ties,
        "prompts": NUM_PROMPTS,
        "annotators": 2,
    }
    # Two people agree where both decide alike.
    first, second = dict(ann), dict(bob)
    both = [id for id in second if "tie" not in (first[id], second[id])]
    agreement = found["agreement"]["people/people"]
    assert agreement["n"]["agreement"] == len(both)
    assert agreement["agreement"] == pytest.approx(
        sum(first[id] == second[id] for id in both) / len(both)
    )


def test_a_preference_model_soft_and_hard(tmp_path):
    from world_models import write_model

    from cai_jax import checkpoints
    from cai_jax.generation.preference import preference_scores

    pairs = write_pairs(tmp_path / "pairs", num_prompts=8)
    model = write_model(tmp_path / "pm", seed=1, preference_model=True)
    inputs = {"pairs": [tmp_path / "pairs"], "preference_model": model}
    counts, found, judgements = run(tmp_path / "soft", inputs)
    loaded = checkpoints.load_model(model)
    tokenizer = loaded.tokenizer
    p_of, total = {}, 0
    for pair in pairs:
        start = tokenizer.encode_prompt(f"\n\nHuman: {pair.dialogue[0].text}\n\nAssistant:")
        texts = [
            [*start, *tokenizer.encode(f" {text}"), tokenizer.eos_id]
            for text in (pair.response_a, pair.response_b)
        ]
        a, b = preference_scores(loaded, texts).tolist()
        p_of[pair.id] = 1 / (1 + math.exp(b - a))
        total += sum(map(len, texts))
    assert counts["tokens"] == total and counts["records"] == len(pairs) == 24
    for judgement in judgements:
        if judgement.p_a is not None:
            assert judgement.p_a == pytest.approx(p_of[judgement.id], abs=1e-5)
    decided = {j.id: j.p_a for j in judgements}
    fit = fit_elo(wins(pairs, decided)).ratings
    assert ratings(found, "preference_model", "harmlessness_elo") == pytest.approx(fit.tolist())
    _, hard, _ = run(tmp_path / "hard", inputs, games="hard")
    decided = {id: None if p is None else float(p > 0.5) for id, p in decided.items()}
    fit = fit_elo(wins(pairs, decided)).ratings
    assert ratings(hard, "preference_model", "harmlessness_elo") == pytest.approx(fit.tolist())


def test_a_feedback_model_by_way_of_its_step(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path / "pairs", num_prompts=6)
    scripted.speak(monkeypatch, lambda text, n: "")

    def rule(text):
        # Likes "two" best, and then whatever stands at (A).
        options = text.split("Options:")[1].split("(B)")
        score = [2.0 * ("two" in option) for option in options]
        score[0] += 0.5
        return np.array(score) - np.logaddexp(*score) - 1

    scripted.choose(monkeypatch, rule)
    constitution = scripted.write_constitution(tmp_path / "constitution.json")
    labels = tmp_path / "labels"
    scripted.run_stage(
        feedback,
        labels,
        {"model": "m", "pairs": tmp_path / "pairs", "constitution": constitution},
        placement="both",
        clamp=(0.4, 0.6),
    )
    inputs = {"pairs": [tmp_path / "pairs"], "comparisons": [labels]}
    counts, found, judgements = run(tmp_path / "elo", inputs)
    # Both placements average the position out: no preference is a tie. No clamp is left.
    p = (1 / (1 + math.exp(-2.5)) + 1 / (1 + math.exp(-1.5))) / 2
    assert counts["ties"] == 6
    for pair, judgement in zip(pairs, judgements, strict=True):
        sides = [pair.tags["model_a"], pair.tags["model_b"]]
        if "two" not in sides:
            assert judgement.p_a is None
        else:
            assert judgement.p_a == pytest.approx(p if sides[0] == "two" else 1 - p, abs=1e-6)
    two = found["judges"]["feedback_model"]["models"]["two"]
    # 12 games of p against 1 - p, and a prior of a third of a win each way with each other model.
    gap = ELO_PER_NAT * math.log((6 * p + 1 / 3) / (6 * (1 - p) + 1 / 3))
    assert two["harmlessness_elo"] == pytest.approx(2 / 3 * gap, rel=1e-5)
    assert two["n"]["harmlessness_elo"] == 12

    write_votes(tmp_path / "ann.csv", [(pair.id, "a") for pair in pairs])
    _, found, _ = run(tmp_path / "both", inputs | {"votes": [tmp_path / "ann.csv"]})
    assert set(found["judges"]) == {"feedback_model", "people"}
    agreement = found["agreement"]["feedback_model/people"]
    firsts = [pair.tags["model_a"] == "two" for pair in pairs if "two" in pair.tags.values()]
    assert agreement["agreement"] == pytest.approx(np.mean(firsts))


def test_judgements_that_do_not_belong_here_are_refused(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", num_prompts=2)
    votes = write_votes(tmp_path / "v.csv", [(pairs[0].id, "a"), ("pdead", "b")])
    one = write_votes(tmp_path / "one.csv", [(pairs[0].id, "a")])
    (tmp_path / "again").mkdir()
    other = write_votes(tmp_path / "again" / "one.csv", [(pairs[0].id, "b")])
    none = write_votes(tmp_path / "none.csv", [(pairs[0].id, "")])
    plain = tmp_path / "plain.jsonl"
    write_records(plain, [Pair("1", pairs[0].dialogue, "a", "b")])
    foreign, twice = tmp_path / "foreign.jsonl", tmp_path / "twice.jsonl"
    first = pairs[0]
    label = Comparison(first.id, first.dialogue, first.response_a, first.response_b, 0.7, "f")
    write_records(foreign, [Comparison(first.id, first.dialogue, "x", "y", 0.7, "f")])
    write_records(twice, [label, label])
    cases = [
        ({"votes": [votes]}, r"v.csv:3: id: expected one of the 6 pairs .* found 'pdead'"),
        ({"votes": [one, other]}, r"one.csv:2: choice: 'one.csv' said another thing"),
        ({"votes": [none]}, "expected at least one judgement"),
        ({"pairs": [plain], "votes": [one]}, "pair '1': tags: expected prompt_set"),
        ({"pairs": [tmp_path / "pairs"] * 2, "votes": [one]}, "expected an id once"),
        ({"comparisons": [foreign]}, "found one of another pair"),
        ({"comparisons": [twice]}, "found a second label"),
    ]
    for number, (changes, message) in enumerate(cases):
        inputs = {"pairs": [tmp_path / "pairs"]} | changes
        with pytest.raises(InputError, match=message) as error:
            run(tmp_path / "elo" / f"{number}", inputs)
        assert "\n" not in str(error.value)
    for anchor in ("four", "three"):
        with pytest.raises(InputError, match="anchor: expected one of"):
            folder = tmp_path / anchor
            run(folder, {"pairs": [tmp_path / "pairs"], "votes": [one]}, anchor=anchor)


def test_bad_configs_are_refused():
    def config(**changes):
        config = elo.default_config()
        config.update(ConfigDict(changes))
        return config

    good = {"pairs": ["p"], "votes": ["v"]}
    elo.check(config(), good)
    for inputs, changes, message in [
        ({"votes": ["v"]}, {}, "inputs.pairs: expected steps"),
        ({"pairs": ["p"]}, {}, "expected a judge, one of preference_model, comparisons, votes"),
        (good, {"games": "won"}, "games: expected one of soft, hard"),
        (good, {"elo_prior": 0.0}, "elo_prior: expected more than 0"),
        (good, {"level": 0.0}, "level: expected"),
        (good, {"num_resamples": 0}, "num_resamples: expected at least 1"),
    ]:
        with pytest.raises(InputError, match=message):
            elo.check(config(**changes), inputs)


def test_the_plan_counts_judgements():
    planned = {"pairs": [{"records": 10, "tokens": 100}, {"records": 5, "tokens": 20}]}
    planned |= {"preference_model": {"parameters": 7}, "votes": [{"records": 1, "tokens": 1}]}
    found = elo.plan(elo.default_config(), planned)
    assert found == {"records": 30, "tokens": 120, "flops": 2.0 * 7 * 120}
