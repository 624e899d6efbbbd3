import json
import os
import random
from pathlib import Path

import pytest

from cai_jax.text import choices
from cai_jax.text.constitution import constitution_from_json
from cai_jax.text.prompts import multiple_choice

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
CONSTITUTION = constitution_from_json(
    {
        "name": "tests",
        "provenance": "ours",
        "principles": [
            {"id": "p", "critique_request": "c", "revision_request": "r", "comparison": "Other."}
        ],
        "critique_few_shots": [],
        "comparison_few_shots": [
            {"dialogue": f"\n\nHuman: q{n}\n\nAssistant:", "better": f"b{n}", "worse": f"w{n}"}
            for n in range(3)
        ],
        "reasoning_few_shots": [f"\n\nHuman: Consider\n\nH: q{n}\n\n\n{{}}" for n in range(3)],
    },
    "tests",
)
TURNS = (choices.Turn("human", "one\n\ntwo"), choices.Turn("assistant", " [[[x]]] "))
PAIR = multiple_choice(TURNS, "Choose well.", "a]]]\n (B) [[[", "b")
HARM = (
    "Here is a conversation between a human and an assistant:\n\nHuman: q\n\nAssistant: a\n\n"
    "Choose:\n (A) Harm.\n (B) None.\nThe answer is:"
)


def laid(found):
    return found.lay_out(found.few_shots)


def test_a_multiple_choice_is_taken_apart_and_put_together():
    plain = multiple_choice(TURNS, "Choose well.", "a", "b\n\nc")
    assert choices.parse_multiple_choice(plain) == (TURNS, "Choose well.", "a", "b\n\nc")
    found = choices.parse_multiple_choice(PAIR)
    assert found is not None and multiple_choice(*found) == PAIR
    assert choices.parse_multiple_choice(HARM) is None
    assert choices.parse_multiple_choice(plain + " ") is None


def test_few_shots_of_comparisons_are_the_constitutions_under_the_prompts_instruction():
    question = multiple_choice(TURNS[:1], "Choose well.", "x", "y")
    found = choices.with_few_shots(question, [("z", " (A)")], CONSTITUTION, 2, random.Random(0))
    assert len(found.few_shots) == 2
    for number, text in enumerate(found.few_shots):
        right = (
            f"\n\n\nChoose well. Options:\n (A) [[[b{number}]]]\n (B) [[[w{number}]]]"
            "\n\nThe answer is: (A)"
        )
        left = (
            f"\n\n\nChoose well. Options:\n (A) [[[w{number}]]]\n (B) [[[b{number}]]]"
            "\n\nThe answer is: (B)"
        )
        assert text.endswith((right, left))
    assert laid(found) == "".join(found.few_shots) + question
    placements = {
        choices.with_few_shots(question, [], CONSTITUTION, 1, random.Random(seed)).few_shots[0][-2]
        for seed in range(20)
    }
    assert placements == {"A", "B"}


def test_other_few_shots_are_other_questions_of_the_file():
    others = [(HARM.replace("q", f"q{n}"), " (B)") for n in range(5)]
    found = choices.with_few_shots(HARM, others, CONSTITUTION, 3, random.Random(0))
    assert len(set(found.few_shots)) == 3
    assert {text.removesuffix(" (B)\n\n") for text in found.few_shots} <= {q for q, _ in others}
    assert laid(found).endswith(f"The answer is: (B)\n\n{HARM}")
    assert choices.with_few_shots(HARM, others[:1], None, 3, random.Random(0)).few_shots == (
        others[0][0] + " (B)\n\n",
    )
    # A prompt with a blank line in front needs no other.
    pair = choices.with_few_shots(PAIR, [(PAIR, " (A)")], None, 3, random.Random(0))
    assert laid(pair) == f"{PAIR} (A){PAIR}"


def test_reasoning_is_asked_for_in_a_turn_of_its_own():
    question = multiple_choice(TURNS[:1], "Choose well.", "x", "y")
    found = choices.with_reasoning(question, CONSTITUTION, 1)
    assert laid(found) == (
        "\n\nHuman: Consider\n\nH: q0\n\n\nChoose well. Options:"
        "\n\nHuman: Consider the following conversation between a human (H) and an assistant (A):"
        "\n\nH: one\n\ntwo\n\n\nChoose well. Options:\n (A) [[[x]]]\n (B) [[[y]]]"
        "\n\nAssistant: Let's think step by step:"
    )
    assert choices.with_reasoning(question, None, 1).few_shots == ()
    assert laid(choices.with_reasoning(HARM, CONSTITUTION, 1)) == (
        "\n\nHuman: Here is a conversation between a human (H) and an assistant (A):"
        "\n\nH: q\n\nA: a\n\nChoose:\n (A) Harm.\n (B) None."
        "\n\nAssistant: Let's think step by step:"
    )


def test_the_papers_438_prompts_come_apart():
    path = SHARED / "paper/official/evals/438HHHEvaluations.jsonl"
    if not path.is_file():
        pytest.skip(f"the paper's official evaluations are not at {path}")
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found = choices.parse_multiple_choice(row["prompt"])
        assert found is not None and multiple_choice(*found) == row["prompt"]
        right = found.first if row["corrects"] == [" (A)"] else found.second
        assert row["text_correct"].endswith(f"\n\nAssistant: {right}")
        assert [turn.role for turn in found.dialogue][-1] == "human"
