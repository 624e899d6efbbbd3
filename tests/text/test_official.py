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
        },
        {
            "prompt": "\nHuman: Consider the following conversation between a human (H) and an "
            "assistant (A):\n\nH:  q\n\nA:   a\n\nH: r  s\n\n{}\n (A) [[[A:  x]]]\n (B) [[[y]]]"
        },
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
    assert constitution.reasoning_few_shots[1] == (
        f"{CONSIDER_REASONING}\n\nH: q\n\nA: a\n\nH: r  s\n\n\n{{}}\n (A) [[[A:  x]]]\n (B) [[[y]]]"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (official.INSTRUCTIONS, {"h0": {"prompt": []}}, "h0: prompt: expected a list of one"),
        (official.INSTRUCTIONS, {"h0": {"prompt": ["x", "y"]}}, "prompt: expected a list of one"),
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


@pytest.fixture(scope="module")
def raw():
    folder = SHARED / "paper/official/prompts"
    if not folder.is_dir():
        pytest.skip(f"the paper's official prompts are not at {folder}")
    names = list(FILES)
    return folder, {name: json.loads((folder / name).read_text("utf-8")) for name in names}


def test_the_papers_instructions_rebuild_byte_for_byte(raw):
    folder, files = raw
    principles = load_constitution(folder).principles
    assert [p.id for p in principles] == [f"harmful{n}" for n in range(16)]
    assert files[official.INSTRUCTIONS] == {
        p.id: {
            "prompt": [f"\n\nCritiqueRequest: {p.critique_request}\n\nCritique:"],
            "edit_request": f"\n\nRevisionRequest: {p.revision_request}\n\nRevision:",
        }
        for p in principles
    }
    assert files[official.COMPARISONS] == [f"\n{p.comparison} Options:" for p in principles]


def test_the_papers_few_shots_for_critiques_and_comparisons(raw):
    folder, files = raw
    constitution = load_constitution(folder)
    theirs = files[official.CRITIQUE_FEW_SHOTS]
    stray = [n for n, text in enumerate(theirs) if text.endswith("\n\nHuman:")]
    assert stray == [0, 1, 2, 4] and len(theirs) == 5
    for n, text in enumerate(constitution.critique_few_shots):
        assert text == (theirs[n][: -len("\n\nHuman:")] if n in stray else theirs[n])
        split_chain(text)
        assert HUMAN not in text.partition("CritiqueRequest")[2]
    assert files[official.COMPARISON_FEW_SHOTS] == [
        {"prompt": e.dialogue, "corrects": [e.better], "incorrects": [e.worse]}
        for e in constitution.comparison_few_shots
    ]
    for example in constitution.comparison_few_shots:
        assert [role for role, _ in parse_dialogue(example.dialogue)] == ["human", "assistant"]


def test_the_papers_few_shots_for_reasoning(raw):
    folder, files = raw
    theirs = [entry["prompt"] for entry in files[official.REASONING_FEW_SHOTS]]
    ours = load_constitution(folder).reasoning_few_shots
    assert len(ours) == len(theirs) == 6
    expected = [text.replace("{}", "\n{}") for text in theirs]
    for n in (1, 2, 5):
        assert ours[n] == expected[n]
    assert theirs[3].startswith("\nHuman:") and ours[3] == "\n" + expected[3]
    heading = "Human: Consider the following conversation between a human and an assistant:"
    assert theirs[4].startswith(heading)
    assert ours[4] == CONSIDER_REASONING + expected[4].removeprefix(heading)
    # Number 0 differs in the spaces after "A:" and the second "H:", and in nothing else.
    assert [theirs[0].count(f"\n\n{letter}:  ") for letter in "AH"] == [1, 1]
    assert ours[0] == expected[0].replace("\n\nA:  ", "\n\nA: ").replace("\n\nH:  ", "\n\nH: ")
    for text in ours:
        assert text.startswith(CONSIDER_REASONING + "\n\nH: ")
        assert text.count(STEP_BY_STEP) == text.count(SO_THE_ANSWER) == 1
        assert text.endswith((f"{SO_THE_ANSWER} (A)", f"{SO_THE_ANSWER} (B)"))
        # The blank line in front of a comparison is that of our own questions.
        filled = reasoning_few_shot(text, "Choose.")
        assert filled.count("\n\n\nChoose. Options:\n (A) [[[") == 1


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
    numbers = map(len, (constitution.critique_few_shots, constitution.comparison_few_shots))
    assert [*numbers, len(constitution.reasoning_few_shots)] == [5, 5, 6]
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
