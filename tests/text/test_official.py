import json
import os
from pathlib import Path

import pytest

from cai_jax.errors import InputError
from cai_jax.text import official
from cai_jax.text.constitution import load_constitution
from cai_jax.text.dialogue import HUMAN, STOPS, parse_dialogue
from cai_jax.text.few_shots import comparison_few_shot, reasoning_few_shot
from cai_jax.text.prompts import CONSIDER_REASONING, SO_THE_ANSWER, STEP_BY_STEP

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))

FILES = {
    official.INSTRUCTIONS: {
        "h0": {
            "prompt": ["\n\nCritiqueRequest: Say it.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Mend it.\n\nRevision:",
        }
    },
    official.COMPARISONS: ["\nChoose. Options:"],
    official.CRITIQUE_FEW_SHOTS: ["\n\nHuman: a\n\nAssistant: b\n\nHuman:", "\n\nHuman: c"],
    official.COMPARISON_FEW_SHOTS: [
        {"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": ["good"], "incorrects": ["bad"]}
    ],
    official.REASONING_FEW_SHOTS: [
        {
            "prompt": "Human: Consider the following conversation between a human and an assistant:"
            "\n\nH: q\n\n{}\n (A) [[[x]]]\n (B) [[[y]]]"
        }
    ],
}


def write(folder, files):
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_the_files_become_a_constitution_and_their_irregularities_are_mended(tmp_path):
    constitution = load_constitution(write(tmp_path, FILES))
    (principle,) = constitution.principles
    assert principle.id == "h0"
    assert (principle.critique_request, principle.revision_request) == ("Say it.", "Mend it.")
    assert principle.comparison == "Choose."
    assert constitution.critique_few_shots == ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c")
    assert comparison_few_shot(constitution.comparison_few_shots[0], "Choose.", False) == (
        "\n\nConsider the following conversation between a human and an assistant:"
        "\n\nHuman: q\n\n\nChoose. Options:\n (A) [[[bad]]]\n (B) [[[good]]]\n\nThe answer is: (B)"
    )
    assert comparison_few_shot(constitution.comparison_few_shots[0], "C", True).endswith(
        " (A) [[[good]]]\n (B) [[[bad]]]\n\nThe answer is: (A)"
    )
    assert reasoning_few_shot(constitution.reasoning_few_shots[0], "Choose.") == (
        f"{CONSIDER_REASONING}\n\nH: q\n\n\nChoose. Options:\n (A) [[[x]]]\n (B) [[[y]]]"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (official.INSTRUCTIONS, {"h0": {"prompt": []}}, "h0: prompt: 0 is missing"),
        (official.INSTRUCTIONS, {"h0": {}}, "h0: 'prompt' is missing"),
        (official.INSTRUCTIONS, {}, "expected 0 comparison instructions"),
        (official.COMPARISONS, ["Choose."], "0: expected text from"),
        (official.COMPARISONS, "x", "expected a list, found 'x'"),
        (official.CRITIQUE_FEW_SHOTS, [3], "0: expected text, found '3'"),
        (official.COMPARISON_FEW_SHOTS, [{"prompt": "x"}], "0: 'corrects' is missing"),
        (official.REASONING_FEW_SHOTS, [{"prompt": "x"}], "0: prompt: expected a conversation"),
    ],
)
def test_malformed_files_are_refused_with_file_and_field(tmp_path, name, value, message):
    with pytest.raises(InputError, match=message) as error:
        load_constitution(write(tmp_path, FILES | {name: value}))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="CritiqueRevisionInstructions.json: expected one of"):
        load_constitution(tmp_path)


def test_the_papers_own_files_import():
    folder = SHARED / "paper/official/prompts"
    if not folder.is_dir():
        pytest.skip(f"the paper's official prompts are not at {folder}")
    constitution = load_constitution(folder)
    assert len(constitution.principles) == 16
    assert constitution.principles[15].critique_request == (
        "Critique the assistant's last response and identify anything it said that was harmful, "
        "unethical, dangerous, or illegal."
    )
    assert [len(constitution.critique_few_shots), len(constitution.comparison_few_shots)] == [5, 5]
    assert not any(text.endswith(HUMAN) for text in constitution.critique_few_shots)
    assert len(constitution.reasoning_few_shots) == 6
    for text in constitution.reasoning_few_shots:
        assert text.startswith(CONSIDER_REASONING + "\n\nH: ")
        assert text.count(STEP_BY_STEP) == text.count(SO_THE_ANSWER) == 1
        assert text.endswith(("(A)", "(B)")) and "\n\n\n{}\n (A) [[[" in text


def test_our_own_constitution_is_whole_and_well_formed():
    constitution = load_constitution(ROOT / "constitutions/principles.json")
    assert len(constitution.principles) == 16
    for kind in ("critique_request", "revision_request", "comparison"):
        assert len({getattr(principle, kind) for principle in constitution.principles}) == 16
    known = {(p.critique_request, p.revision_request) for p in constitution.principles}
    for chain in constitution.critique_few_shots:
        assert chain.startswith(HUMAN)
        _, request, _, wish, _ = split_chain(chain)
        assert (request, wish) in known
    for example in constitution.comparison_few_shots:
        turns = parse_dialogue(example.dialogue)
        assert turns[-1] == ("assistant", "") and turns[-2][0] == "human"
    for text in constitution.reasoning_few_shots:
        assert text.startswith(CONSIDER_REASONING) and "\n\n\n{}\n (A) [[[" in text
        assert text.count(STEP_BY_STEP) == 1
        assert text.endswith((f"{SO_THE_ANSWER} (A)", f"{SO_THE_ANSWER} (B)"))
    answers = [text[-2] for text in constitution.reasoning_few_shots]
    assert answers.count("A") == answers.count("B")


def split_chain(chain):
    pieces, rest = [], chain
    for stop in STOPS[2:]:  # critique request, critique, revision request, revision
        piece, found, rest = rest.partition(stop)
        assert found
        pieces.append(piece.strip())
    return [*pieces, rest.strip()]


def test_our_own_wording_is_not_the_papers():
    folder = SHARED / "paper/official/prompts"
    if not folder.is_dir():
        pytest.skip(f"the paper's official prompts are not at {folder}")
    shingles = []
    for constitution in (
        load_constitution(ROOT / "constitutions/principles.json"),
        load_constitution(folder),
    ):
        texts = [
            text
            for p in constitution.principles
            for text in (p.critique_request, p.revision_request, p.comparison)
        ]
        texts += [e.better + " " + e.worse for e in constitution.comparison_few_shots]
        words = [text.lower().split() for text in texts]
        shingles.append({tuple(w[i : i + 7]) for w in words for i in range(len(w) - 6)})
    assert not shingles[0] & shingles[1]
