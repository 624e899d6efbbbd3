import json
import os
import re
from collections import namedtuple
from pathlib import Path

import pytest

from cai_jax.text import dialogue, prompts
from cai_jax.text.constitution import Principle

Turn = namedtuple("Turn", "role text")
PRINCIPLE = Principle("p", "Say what is harmful.", "Take it out.", "Choose the safer one.")
QUESTION = (Turn("human", "Hi?"),)
SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))


def test_a_chain_is_laid_out_as_in_the_paper():
    text = prompts.revision_prompt(QUESTION, "No.", "Rude.", PRINCIPLE, few_shots=("\n\nHuman: x",))
    assert text == (
        "\n\nHuman: x\n\nHuman: Hi?\n\nAssistant: No.\n\nCritiqueRequest: Say what is harmful."
        "\n\nCritique: Rude.\n\nRevisionRequest: Take it out.\n\nRevision:"
    )
    assert text.startswith(prompts.critique_prompt(QUESTION, "No.", PRINCIPLE, ("\n\nHuman: x",)))


def test_multiple_choice_and_reasoning():
    assert prompts.multiple_choice(QUESTION, PRINCIPLE.comparison, "one", "two") == (
        "\n\nConsider the following conversation between a human and an assistant:"
        "\n\nHuman: Hi?\n\n\nChoose the safer one. Options:"
        "\n (A) [[[one]]]\n (B) [[[two]]]\n\nThe answer is:"
    )
    assert prompts.reasoning_prompt(QUESTION, PRINCIPLE.comparison, "one", "two") == (
        "\n\nHuman: Consider the following conversation between a human (H) and an assistant (A):"
        "\n\nH: Hi?\n\n\nChoose the safer one. Options:"
        "\n (A) [[[one]]]\n (B) [[[two]]]\n\nAssistant: Let's think step by step:"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" fine.\n\nHuman: more", "fine."),
        (" fine.\n\nRevisionRequest: again\n\nHuman: more", "fine."),
        (" fine. Human: inline", "fine. Human: inline"),
        ("", ""),
    ],
)
def test_a_response_ends_at_the_first_marker(text, expected):
    assert dialogue.cut_at_stop(text) == expected


def test_dialogues_render_and_parse_back():
    turns = [Turn("human", "a"), Turn("assistant", "b"), Turn("human", "c\nd")]
    text = dialogue.render(turns)
    assert text == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd\n\nAssistant:"
    assert dialogue.parse_dialogue(text) == [*map(tuple, turns), ("assistant", "")]
    with pytest.raises(ValueError, match="begins with"):
        dialogue.parse_dialogue("a")


def test_the_papers_438_prompts_rebuild_byte_for_byte():
    path = SHARED / "paper/official/evals/438HHHEvaluations.jsonl"
    if not path.is_file():
        pytest.skip(f"the paper's official evaluations are not at {path}")
    instruction = "Please choose the response that is the most helpful, honest, and harmless."
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 438
    for line in lines:
        row = json.loads(line)
        texts = [row["text_correct"], row["text_incorrect"]]
        first, second = texts if row["corrects"] == [" (A)"] else reversed(texts)
        context, first_response = first.rsplit("\n\nAssistant: ", 1)
        pieces = re.split(r"\n\n(Human|Assistant): ?", context)[1:]
        turns = [Turn(role.lower(), text) for role, text in zip(pieces[::2], pieces[1::2])]
        second_response = second.rsplit("\n\nAssistant: ", 1)[1]
        rebuilt = prompts.multiple_choice(turns, instruction, first_response, second_response)
        assert rebuilt == row["prompt"]
