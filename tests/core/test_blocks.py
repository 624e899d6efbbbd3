import functools
import os
from collections import Counter

import pytest
from scripted import run_stage, speak, write_constitution

from cai_jax.core import blocks
from cai_jax.core.training_checkpoints import rewind
from cai_jax.data.schema import Asked, Chain, Comparison, Round, Turn, read_records, write_records
from cai_jax.stages import critique_revise

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
    return blocks.kept(folder, 0, counts, make, write_records, read)


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


def test_an_interrupted_step_samples_only_what_it_has_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(critique_revise, "BLOCK", 2)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": "p{i}", "prompt": "Question {i}?"}}\n' for i in range(5)))
    given = {
        "model": tmp_path,
        "prompts": prompts,
        "constitution": write_constitution(tmp_path / "constitution.json"),
    }
    stops = []

    def rule(text, number):
        if "Question 3" in text and "Revision:" in text and stops:
            raise stops.pop()
        return f" said {len(text)}."

    asked = speak(monkeypatch, rule)
    expected = run_stage(critique_revise, tmp_path / "whole" / "step", given, num_rounds=1)
    all_asked = [text for text, _, _ in asked]
    asked.clear()
    stops.append(KeyboardInterrupt())
    folder = tmp_path / "stopped" / "step"
    with pytest.raises(KeyboardInterrupt):
        run_stage(critique_revise, folder, given, num_rounds=1)
    asked.clear()
    assert rewind(folder) is None
    assert run_stage(critique_revise, folder, given, num_rounds=1) == expected
    assert [text for text, _, _ in asked] == all_asked[6:]  # the first block's 2 x 3 are there
    whole = (tmp_path / "whole" / "step" / "chains.jsonl").read_bytes()
    assert (folder / "chains.jsonl").read_bytes() == whole
