import dataclasses
import functools
import os
import types
from collections import Counter

import numpy as np
import pytest
from scripted import run_stage, speak, write_constitution

from cai_jax.core import blocks
from cai_jax.core.training_checkpoints import rewind
from cai_jax.data.schema import Asked, Chain, Comparison, Round, Turn, read_records, write_file
from cai_jax.generation import preference
from cai_jax.stages import best_of_n, compare, critique_revise, evaluate, red_team

DIALOGUE = (Turn("human", "é\u2028?"),)
MADE = {
    Chain: [Chain("a", DIALOGUE, "r", (Round("harm", "c", ""),)), Chain("b", DIALOGUE, "")],
    Comparison: [
        Comparison(
            "a",
            DIALOGUE,
            "one",
            "two",
            1 / 3,
            "feedback",
            "harm",
            -0.1,
            -1e-7,
            True,
            "why",
            asked=(Asked("harm", True, -0.1, -2.5, "why"),),
        )
    ],
}


def kept(folder, kind, counts, make):
    read = functools.partial(read_records, record_type=kind)
    return blocks.kept(folder, 0, counts, make, write_file, read)


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_a_block_is_made_once_and_comes_back_with_the_counts_up_to_it(kind, tmp_path):
    def make():
        counts["tokens"] += 7
        return iter(MADE[kind])

    def never():
        raise AssertionError

    counts = Counter(tokens=3, dropped=0)
    assert kept(tmp_path, kind, counts, make) == MADE[kind]
    again = Counter(tokens=3, other=1)
    assert kept(tmp_path, kind, again, never) == MADE[kind]
    assert dict(again) == {"tokens": 10, "dropped": 0}
    rewind(tmp_path)  # leaves it
    assert kept(tmp_path, kind, again, never) == MADE[kind]


def truncate(folder):
    os.truncate(folder / "00000000.jsonl", 9)


def flip(folder):
    path = folder / "00000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"A"'))


def leave_half(folder):
    (folder / "00000000.json").unlink()


@pytest.mark.parametrize("harm", [truncate, flip, leave_half])
def test_a_block_that_is_not_whole_is_made_again(harm, tmp_path):
    counts = Counter(tokens=1)
    kept(tmp_path, Chain, counts, lambda: MADE[Chain])
    harm(tmp_path / "unfinished" / "blocks")
    made = []

    def make():
        made.append(1)
        return MADE[Chain]

    assert kept(tmp_path, Chain, counts, make) == MADE[Chain]
    assert made == [1]


@dataclasses.dataclass
class Case:
    """A step that asks so often in its first block, and stops at the `stop`-th question, later."""

    stage: types.ModuleType
    roles: tuple[str, ...]
    changes: dict
    first_block: int
    stop: int
    text: str
    blocks: tuple[str, ...] = ("BLOCK",)


CASES = [
    Case(critique_revise, ("model", "prompts", "constitution"), {"num_rounds": 1}, 6, 9, "chains"),
    Case(compare, ("model", "prompts"), {}, 4, 7, "pairs"),
    Case(evaluate, ("models", "red_team", "benign"), {}, 12, 14, "samples"),
    Case(
        red_team,
        ("model", "prompts"),
        {"num_prompts": 5, "num_few_shots": 2, "similarity": 1.0},
        2,
        4,
        "prompts",
        ("SMALLEST_BLOCK", "LARGEST_BLOCK"),
    ),
    Case(
        best_of_n,
        ("model", "preference_model", "prompts"),
        {"num_samples": 2},
        2,
        4,
        "candidates",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stage.__name__.rpartition(".")[2])
def test_an_interrupted_step_samples_only_what_it_has_not_finished(case, tmp_path, monkeypatch):
    for name in case.blocks:
        monkeypatch.setattr(case.stage, name, 2)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": "p{i}", "prompt": "Question {i}?"}}\n' for i in range(5)))
    given = {
        "model": tmp_path,
        "models": {"one": tmp_path, "other": tmp_path},
        "preference_model": tmp_path,
        "prompts": prompts,
        "red_team": prompts,
        "benign": prompts,
        "constitution": write_constitution(tmp_path / "constitution.json"),
    }
    given = {role: given[role] for role in case.roles}
    monkeypatch.setattr(preference, "check_models", lambda *_: None)
    monkeypatch.setattr(
        preference,
        "preference_scores",
        lambda model, texts, **_: np.array([sum(text) / 3 for text in texts], np.float32),
    )
    left = [10**9]  # questions until the step is stopped

    def rule(text, key):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        short = key[-1].endswith("-1")  # too short a prompt: dropped
        return " Hi." if short else f" Say thing {key[-1]} of {key[0]} to me\n"

    asked = speak(monkeypatch, rule, by_key=True)
    expected = run_stage(case.stage, tmp_path / "whole" / "step", given, **case.changes)
    all_asked = [(text, key) for text, _, key in asked]
    assert len(all_asked) > case.stop > case.first_block
    folder = tmp_path / "stopped" / "step"
    left[0] = case.stop
    with pytest.raises(KeyboardInterrupt):
        run_stage(case.stage, folder, given, **case.changes)
    asked.clear()
    left[0] = 10**9
    assert rewind(folder) is None
    assert run_stage(case.stage, folder, given, **case.changes) == expected
    assert [(text, key) for text, _, key in asked] == all_asked[case.first_block :]
    name = f"{case.text}.jsonl"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / "step" / name).read_bytes()
