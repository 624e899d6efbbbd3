import os
from pathlib import Path

import pytest

from cai_jax.errors import InputError
from cai_jax.text import few_shots
from cai_jax.text.constitution import ComparisonExample, load_constitution

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
CONSTITUTION = Path(__file__).parents[2] / "constitutions/principles.json"


def test_a_comparison_has_its_answer_where_the_better_response_stands():
    example = ComparisonExample("\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:", "+", "-")
    head = (
        "\n\nConsider the following conversation between a human and an assistant:"
        "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\n\nChoose. Options:"
    )
    assert few_shots.comparison_few_shot(example, "Choose.", True) == (
        f"{head}\n (A) [[[+]]]\n (B) [[[-]]]\n\nThe answer is: (A)"
    )
    assert few_shots.comparison_few_shot(example, "Choose.", False) == (
        f"{head}\n (A) [[[-]]]\n (B) [[[+]]]\n\nThe answer is: (B)"
    )
    with pytest.raises(InputError, match="comparison few-shot: expected a dialogue"):
        few_shots.comparison_few_shot(ComparisonExample("q", "+", "-"), "Choose.", True)


def test_reasoning_gets_its_principle():
    assert few_shots.reasoning_few_shot("a\n{}\nb", "Choose.") == "a\nChoose. Options:\nb"


def fit(room, lengths, question=5):
    """Fits prompts whose few-shots are so long, of one letter a position each."""
    shots = [[chr(97 + n) * length for n, length in enumerate(of_one)] for of_one in lengths]
    rounds = []

    def encode(texts):
        rounds.append(len(texts))
        return [[ord(letter) for letter in text] for text in texts]

    lay_outs = [lambda kept: "".join(kept) + "?" * question] * len(lengths)
    fitted = few_shots.fit(lay_outs, shots, encode, room)
    texts = [p and ("".join(map(chr, p.ids)), p.dropped) for p in fitted]
    assert [p and p.text for p in fitted] == [both and both[0] for both in texts]
    return texts, rounds


def test_few_shots_go_from_the_front_until_the_prompt_fits():
    texts, rounds = fit(8, [(1, 2), (2, 2), (9, 1, 1), (), (1, 3, 4)])
    assert texts == [
        ("abb?????", 0),
        ("bb?????", 1),
        ("bc?????", 1),
        ("?????", 0),
        ("?????", 3),
    ]
    assert rounds == [5, 3, 1, 1]


def test_a_prompt_that_fits_in_no_way_is_none():
    assert fit(4, [(1, 1), ()]) == ([None, None], [2, 1, 1])
    assert fit(5, [(1, 1)])[0] == [("?????", 2)]


def chains():
    yield from load_constitution(CONSTITUTION).critique_few_shots
    if (SHARED / "paper/official/prompts").is_dir():
        yield from load_constitution(SHARED / "paper/official/prompts").critique_few_shots


def test_direct_few_shots_lose_their_critiques_and_nothing_else():
    text = (
        "\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: c\n\nd\n\nCritique: e\n\nf"
        "\n\nRevisionRequest: r\n\nRevision: s"
    )
    direct = few_shots.without_critiques(text + text)
    assert direct == "\n\nHuman: q\n\nAssistant: a\n\nRevisionRequest: r\n\nRevision: s" * 2
    for chain in chains():
        direct = few_shots.without_critiques(chain)
        assert "Critique" not in direct and direct.count("\n\nRevision:") >= 1
        start, _, end = chain.partition("\n\nCritiqueRequest:")
        assert direct.startswith(start + "\n\nRevisionRequest:")
        assert direct.endswith(end.rpartition("\n\nRevisionRequest:")[2])
