import json
from collections import Counter

import jax
import pytest
from ml_collections import ConfigDict
from scripted import (
    CRITIQUE_FEW_SHOT,
    PRINCIPLES,
    run_stage,
    speak,
    write_constitution,
    write_model,
)

from cai_jax import inputs as outside
from cai_jax import planner
from cai_jax.data.schema import Chain, Round, Turn, read_records
from cai_jax.errors import InputError
from cai_jax.pipeline import read_steps
from cai_jax.stages import critique_revise, load_stage, step
from cai_jax.text.constitution import load_constitution

WORDINGS = {principle["id"]: principle for principle in PRINCIPLES}
SHOTS = [CRITIQUE_FEW_SHOT.replace("{n}", str(n)) for n in range(3)]


def write_prompts(path, count=3, start=0):
    lines = [{"id": f"p{i}", "prompt": f"Question {i}?"} for i in range(start, start + count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def given(tmp_path):
    return {
        "model": tmp_path,
        "prompts": write_prompts(tmp_path / "prompts.jsonl"),
        "constitution": write_constitution(tmp_path / "constitution.json"),
    }


def run(folder, given, **changes):
    counts = run_stage(critique_revise, folder, given, **changes)
    return counts, read_records(folder / "chains.jsonl", Chain)


def numbered(text, number):
    """Says its number, and runs on into another turn."""
    return f" said {number}.\n\nHuman: more"


def test_every_prompt_is_laid_out_from_the_pieces_of_its_chain(tmp_path, given, monkeypatch):
    asked = speak(monkeypatch, numbered)
    counts, chains = run(tmp_path / "step", given, num_rounds=2, num_few_shots=2)
    assert [chain.id for chain in chains] == ["p0", "p1", "p2"]
    assert counts["records"] == 3 and counts["revisions"] == 6
    prompts = [text for text, _, _ in asked]
    shots = SHOTS[0] + SHOTS[1]
    expected = [f"\n\nHuman: Question {i}?\n\nAssistant:" for i in range(3)]
    for number in range(2):
        befores = [
            (
                f"{shots}\n\nHuman: Question {i}?\n\nAssistant: "
                f"{chain.rounds[number - 1].revision if number else chain.response}"
                f"\n\nCritiqueRequest: Criticise {chain.rounds[number].principle}.\n\nCritique:"
            )
            for i, chain in enumerate(chains)
        ]
        expected += befores
        expected += [
            f"{before} {chain.rounds[number].critique}"
            f"\n\nRevisionRequest: Revise {chain.rounds[number].principle}.\n\nRevision:"
            for before, chain in zip(befores, chains)
        ]
    assert prompts == expected
    # Said in the order asked, and cut before the turn that it ran on into.
    assert [chain.response for chain in chains] == ["said 0.", "said 1.", "said 2."]
    assert [c.rounds[0].critique for c in chains] == ["said 3.", "said 4.", "said 5."]
    assert [c.rounds[1].revision for c in chains] == ["said 12.", "said 13.", "said 14."]
    assert chains[0].dialogue == (Turn("human", "Question 0?"),)
    # No two draws share a key, and ids alone tell records apart.
    assert len({key for _, _, key in asked}) == len(asked) == 15
    assert {key[-1] for _, _, key in asked} == {"p0", "p1", "p2"}


def test_the_constitution_is_kept_beside_the_chains(tmp_path, given, monkeypatch):
    speak(monkeypatch, numbered)
    run(tmp_path / "step", given, num_rounds=1)
    kept = load_constitution(tmp_path / "step" / "constitution.json")
    assert kept == load_constitution(given["constitution"])


def test_settings_of_each_text(tmp_path, given, monkeypatch):
    asked = speak(monkeypatch, numbered)
    sampling = {"temperature": 0.5, "top_k": 7, "top_p": 0.9}
    tokens = {"max_response_tokens": 50, "max_critique_tokens": 60, "max_revision_tokens": 70}
    run(tmp_path / "step", given, num_rounds=1, limit=1, **sampling, **tokens)
    assert [settings.max_new_tokens for _, settings, _ in asked] == [50, 60, 70]
    for _, settings, _ in asked:
        assert (settings.temperature, settings.top_k, settings.top_p) == (0.5, 7, 0.9)
        assert settings.stop == (
            "\n\nHuman:",
            "\n\nAssistant:",
            "\n\nCritiqueRequest:",
            "\n\nCritique:",
            "\n\nRevisionRequest:",
            "\n\nRevision:",
        )


def test_empty_and_truncated_texts_are_counted(tmp_path, given, monkeypatch):
    def rule(text, number):
        if text.endswith("\n\nRevision:"):
            return "\n\nHuman: nothing before" if "Question 1?" in text else "x" * 80
        return " critique" if text.endswith("Critique:") else ""

    speak(monkeypatch, rule)
    counts, chains = run(tmp_path / "step", given, num_rounds=2, max_revision_tokens=40)
    assert chains[1].rounds[1].revision == chains[1].rounds[0].revision == chains[1].response == ""
    assert chains[0].rounds[1].revision == "x" * 40
    assert counts["empty_responses"] == 3 and counts["truncated_responses"] == 0
    assert counts["empty_critiques"] == 0
    assert counts["empty_revisions"] == 2 and counts["truncated_revisions"] == 4
    assert counts["tokens"] == 6 * len(" critique") + 4 * 40 + 2 * len("\n\nHuman: nothing before")


def test_an_empty_revision_keeps_the_text_before_it(tmp_path, given, monkeypatch):
    speak(monkeypatch, lambda text, n: "" if text.endswith("Revision:") else f" {n}")
    counts, chains = run(tmp_path / "step", given, num_rounds=3)
    assert [r.revision for r in chains[2].rounds] == ["2"] * 3
    assert counts["empty_revisions"] == 9


def test_direct_revisions_leave_every_critique_out(tmp_path, given, monkeypatch):
    asked = speak(monkeypatch, numbered)
    _, chains = run(tmp_path / "step", given, num_rounds=1, critique=False, num_few_shots=1)
    assert len(asked) == 6
    principle = chains[0].rounds[0].principle
    assert chains[0].rounds == (Round(principle, "", "said 3."),)
    assert asked[3][0] == (
        "\n\nHuman: q0\n\nAssistant: a0\n\nRevisionRequest: r0\n\nRevision: s0"
        "\n\nHuman: Question 0?\n\nAssistant: said 0."
        f"\n\nRevisionRequest: {WORDINGS[principle]['revision_request']}\n\nRevision:"
    )


def test_samples_without_rounds_need_no_constitution(tmp_path, given, monkeypatch):
    asked = speak(monkeypatch, numbered)
    del given["constitution"]
    counts, chains = run(tmp_path / "step", given, num_rounds=0)
    assert [chain.rounds for chain in chains] == [(), (), ()]
    assert len(asked) == counts["records"] == 3 and counts["revisions"] == 0
    # What is kept to go on from is the runner's to take away.
    names = {path.name for path in (tmp_path / "step").iterdir()} - {"unfinished"}
    assert names == {"chains.jsonl"}


def test_few_shots_give_way_from_the_front(tmp_path, given, monkeypatch):
    short = {"max_response_tokens": 20, "max_critique_tokens": 20, "max_revision_tokens": 20}
    base = len("\n\nHuman: Question 0?\n\nAssistant: said 0.")
    critique = len("\n\nCritiqueRequest: Criticise harm.\n\nCritique:")
    # Room for the critique's prompt with one few-shot and two characters, beside what it may say.
    positions = base + critique + len(SHOTS[0]) + 2 + 20
    asked = speak(monkeypatch, lambda text, n: f" said {n}.", max_positions=positions)
    counts, _ = run(tmp_path / "step", given, num_rounds=1, num_few_shots=3, limit=1, **short)
    assert asked[1][0].startswith(SHOTS[2] + "\n\nHuman: Question 0?")
    assert asked[2][0].startswith("\n\nHuman: Question 0?")
    assert counts["few_shots_dropped"] == 2 + 3 and counts["too_long"] == 0


def test_prompts_that_may_not_fit_are_refused_or_left_out(tmp_path, given, monkeypatch):
    long = {"id": "long", "prompt": "Question " + "x" * 300}
    with open(given["prompts"], "a") as file:
        file.write(json.dumps(long) + "\n")
    short = {"max_response_tokens": 20, "max_critique_tokens": 20, "max_revision_tokens": 20}
    frame = "\n\nCritiqueRequest: Criticise harm.\n\nCritique: \n\nRevisionRequest: Revise harm."
    most = len(f"\n\nHuman: Question 0?\n\nAssistant: {frame}\n\nRevision:") + 60
    asked = speak(monkeypatch, numbered, max_positions=most + len("\n\nAssistant: ") + 10)
    with pytest.raises(
        InputError,
        match="found 1 of 4 that are longer, the first 'long' of 330; a chain may need 161 of",
    ):
        run(tmp_path / "refused", given, num_rounds=1, **short)
    assert not asked
    counts, chains = run(tmp_path / "step", given, num_rounds=1, on_long="drop", **short)
    assert counts["too_long"] == 1 and [chain.id for chain in chains] == ["p0", "p1", "p2"]
    with pytest.raises(InputError, match="found 4 of 4"):
        run(tmp_path / "none", given, on_long="drop", **short | {"max_response_tokens": 900})


def test_files_of_one_name_keep_their_records_apart(tmp_path, given, monkeypatch):
    speak(monkeypatch, numbered)
    other = write_prompts(tmp_path / "other.jsonl", count=3, start=2)
    given["prompts"] = [given["prompts"], other]
    _, chains = run(tmp_path / "step", given, num_rounds=0, limit=2)
    assert [chain.id for chain in chains] == ["p0", "p1", "p2", "p3"]
    _, chains = run(tmp_path / "all", given, num_rounds=0)
    assert [chain.id for chain in chains] == ["p0", "p1", "p2", "p2@1", "p3", "p4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rounds": -1}, "num_rounds: expected 0 or more, found -1"),
        ({"on_long": "cut"}, "on_long: expected 'refuse' or 'drop', found 'cut'"),
        ({"max_critique_tokens": 0}, "max_new_tokens: expected at least 1, found 0"),
        ({"principles": ("greed",)}, "unknown principle 'greed'; it has harm, lies, tone"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_loaded(tmp_path, given, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "step", given, **changes)
    del given["constitution"]
    with pytest.raises(InputError, match="inputs.constitution: needed for num_rounds > 0"):
        run(tmp_path / "without", given)


def draw(ids, number=1, seed=0, principles=()):
    constitution = load_constitution(outside.checkpoints.resolve("sandbox:constitution.json"))
    constitution = constitution.subset(principles)
    key = jax.random.key(seed)
    job = critique_revise.Job(ConfigDict(), None, constitution, key, None, None, Counter())
    chains = [Chain(id, (), "") for id in ids]
    return [principle.id for principle in critique_revise.draw_principles(job, number, chains)]


def test_principles_are_drawn_evenly_by_seed_record_and_round():
    ids = [f"record-{i}" for i in range(3200)]
    drawn = draw(ids)
    counts = Counter(drawn)
    assert len(counts) == 16
    # 200 of each expected; five standard deviations (13.7) either way.
    assert all(abs(count - 200) < 69 for count in counts.values())
    second = draw(ids, number=2)
    # Rounds and seeds draw independently: one in sixteen agrees.
    for other in (second, draw(ids, seed=1)):
        agree = sum(a == b for a, b in zip(drawn, other))
        assert abs(agree - 200) < 69
    # The other records and their order are nothing to a record.
    assert draw(ids[100:110][::-1]) == drawn[100:110][::-1]
    assert set(draw(ids[:50], principles=("general-2",))) == {"general-2"}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "random")


def test_batches_seeds_and_other_records(tmp_path, random_model):
    given = {
        "model": random_model,
        "prompts": write_prompts(tmp_path / "prompts.jsonl", count=5),
        "constitution": write_constitution(tmp_path / "constitution.json"),
    }
    small = {"max_response_tokens": 6, "max_critique_tokens": 6, "max_revision_tokens": 6}
    small |= {"num_rounds": 1, "num_few_shots": 0}

    def chains(name, given=given, **changes):
        # Keys know the step's name: it is the same in every run.
        return run(tmp_path / name / "chains", given, **small | changes)[1]

    found = chains("five", batch_size=5)
    assert len({chain.response for chain in found}) == 5
    assert chains("two", batch_size=2) == found
    fewer = write_prompts(tmp_path / "fewer.jsonl", count=2, start=3)
    assert chains("fewer", given | {"prompts": fewer}, batch_size=2) == found[3:]
    other = chains("other", batch_size=5, seed=1)
    assert all(a.response != b.response for a, b in zip(found, other))


def plan_of(config, counts, monkeypatch):
    monkeypatch.setattr(outside, "count", lambda role, path: counts[role])

    class Given:
        def path(self, step, role, reference):
            return reference

    return planner.plan(read_steps(config, load_stage), Given()).counts


def test_the_papers_numbers_are_planned(monkeypatch):
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.steps = ConfigDict(sort_keys=False)
    roles = {"model": "m", "prompts": "p", "constitution": "c"}
    config.steps.revisions = step("critique_revise", roles)
    config.steps.two_files = step("critique_revise", roles | {"prompts": ["p", "p"]}, limit=1000)
    config.steps.helpful = step("critique_revise", {"model": "m", "prompts": "p"}, num_rounds=0)
    counts = {
        "model": {"parameters": 52_000_000_000},
        "prompts": {"records": 182_831, "tokens": 182_831 * 50},
        "constitution": {"records": 1, "tokens": 0},
    }
    plans = plan_of(config, counts, monkeypatch)
    assert plans["revisions"]["records"] == 182_831
    assert plans["revisions"]["revisions"] == 731_324
    assert plans["revisions"]["tokens"] == 182_831 * (256 + 4 * 512)
    assert plans["two_files"]["records"] == 2000 and plans["two_files"]["revisions"] == 8000
    assert plans["helpful"]["revisions"] == 0
    # 50 tokens read and 256 written for each of them, at 2 FLOPs a parameter.
    assert plans["helpful"]["flops"] == pytest.approx(2 * 52e9 * 182_831 * 306)
