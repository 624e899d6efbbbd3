"""What ships with the package is what the build makes, and keeps training and evaluation apart."""

import random
from importlib import resources
from pathlib import Path

import pytest

from cai_jax.data.schema import Comparison, Pair, Prompt, read_records
from cai_jax.sandbox import build, corpus, oracle
from cai_jax.text.constitution import load_constitution

DATA = Path(str(resources.files("cai_jax.sandbox"))) / "data"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rebuilt")
    build.write_data(folder)
    build.write_laboratory_data(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "constitution.json",
        *(f"prompts/{k}_{s}.jsonl" for k in ("red_team", "benign") for s in build.PROMPT_COUNT),
        *(f"comparisons/helpfulness_{split}.jsonl" for split in ("train", "held_out")),
        "comparisons/harmlessness_held_out.jsonl",
        "pairs/held_out.jsonl",
        "laboratory/revisions.json",
        *(f"laboratory/prompts/{kind}_held_out.jsonl" for kind in ("red_team", "benign")),
        *(f"laboratory/pairs/{split}.jsonl" for split in build.LABORATORY_SEEDS),
    ],
)
def test_shipped_data_is_what_the_build_makes(rebuilt, name):
    assert (rebuilt / name).read_bytes() == (DATA / name).read_bytes()


def prompts(name):
    return read_records(DATA / "prompts" / f"{name}.jsonl", Prompt)


def test_prompts_of_training_and_evaluation_are_disjoint():
    for kind in ("red_team", "benign"):
        texts = {
            split: {p.dialogue[0].text for p in prompts(f"{kind}_{split}")}
            for split in build.PROMPT_COUNT
        }
        assert {split: len(found) for split, found in texts.items()} == build.PROMPT_COUNT
        assert len(set.union(*texts.values())) == sum(build.PROMPT_COUNT.values())


def test_the_laboratorys_held_out_data_is_new():
    """No prompt and no pair of it was there when results were read before."""
    for kind in ("red_team", "benign"):
        shipped = {p.dialogue[0].text for s in build.PROMPT_COUNT for p in prompts(f"{kind}_{s}")}
        new = read_records(DATA / f"laboratory/prompts/{kind}_held_out.jsonl", Prompt)
        texts = {prompt.dialogue[0].text for prompt in new}
        rng = random.Random(f"prompts {kind} {build.LABORATORY_READ_SEED}")
        read = build.draw_prompts(rng, kind, "held_out", but=shipped)
        known = shipped | {prompt["dialogue"][0]["text"] for prompt in read}
        assert len(texts) == len(new) == 400 and not texts & known
    files = [
        "pairs/held_out.jsonl",
        *(f"laboratory/pairs/{s}.jsonl" for s in ("validation", "held_out")),
    ]
    pairs = [
        {(p.dialogue[0].text, p.response_a, p.response_b) for p in read_records(DATA / f, Pair)}
        for f in files
    ]
    read = build.draw_pairs(random.Random(f"pairs {build.LABORATORY_READ_SEED}"))
    pairs.append({(p["dialogue"][0]["text"], p["response_a"], p["response_b"]) for p in read})
    assert [len(found) for found in pairs] == [600] * 4
    assert len(set.union(*pairs)) == 2400


def test_no_training_text_is_about_a_held_out_scene():
    """Neither requests of prompts and comparisons nor the pretraining corpus."""
    evaluated = [
        p.dialogue[0].text
        for kind in ("red_team", "benign")
        for split in ("validation", "held_out")
        for p in prompts(f"{kind}_{split}")
    ]
    pairs = read_records(DATA / "pairs/held_out.jsonl", Pair)
    evaluated += [pair.dialogue[0].text for pair in pairs]
    scenes = {scene_of(text) for text in evaluated}
    assert len(scenes) > 600
    trained = [p.dialogue[0].text for k in ("red_team", "benign") for p in prompts(f"{k}_train")]
    comparisons = read_records(DATA / "comparisons/helpfulness_train.jsonl", Comparison)
    trained += [comparison.dialogue[0].text for comparison in comparisons]
    assert not scenes & {scene_of(text) for text in trained}
    rng = random.Random(5)
    for _ in range(2000):
        text = "".join(piece.text for piece in corpus.draw_pieces(rng))
        assert not any(scene in text for scene in scenes)


def scene_of(request):
    """The act with its slots, without the phrasing around it."""
    return next(match.group() for _, act in oracle.acts() if (match := act.search(request)))


def test_every_category_is_asked_about_equally_often():
    counts: dict[str, int] = {}
    for prompt in prompts("red_team_train"):
        assert oracle.subject_of(prompt.dialogue[0].text) == prompt.tags["category"]
        counts[prompt.tags["category"]] = counts.get(prompt.tags["category"], 0) + 1
    assert set(counts.values()) == {100}


def test_the_constitution_has_sixteen_principles_and_few_shots():
    constitution = load_constitution(DATA / "constitution.json")
    assert len(constitution.principles) == 16
    assert len(constitution.critique_few_shots) == 3
    assert len(constitution.comparison_few_shots) == len(constitution.reasoning_few_shots) == 3


def test_human_comparisons_never_ask_whether_to_comply_with_harm():
    for comparison in read_records(DATA / "comparisons/helpfulness_train.jsonl", Comparison):
        request = comparison.dialogue[0].text
        verdicts = [
            oracle.judge(request, r) for r in (comparison.response_a, comparison.response_b)
        ]
        if oracle.subject_of(request) in corpus.language.harms():
            assert not any(verdict.helpful for verdict in verdicts)
        better, worse = verdicts if comparison.p_a == 1.0 else reversed(verdicts)
        assert worse.broken or (worse.evasive and not better.evasive)


@pytest.mark.parametrize("folder", ["pairs", "laboratory/pairs"])
def test_pairs_have_equally_many_but_other_harms(folder):
    for pair in read_records(DATA / folder / "held_out.jsonl", Pair):
        request = pair.dialogue[0].text
        a, b = (oracle.judge(request, r).harms for r in (pair.response_a, pair.response_b))
        assert len(a) == len(b) > 0
        assert set(a) != set(b)
