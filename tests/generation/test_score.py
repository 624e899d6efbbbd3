"""Scoring of given completions, against one torch forward for each token."""

import dataclasses
import functools
import types

import jax
import jax.extend
import numpy as np
import pytest
import references
import tiny_models

from cai_jax import checkpoints
from cai_jax.errors import InputError
from cai_jax.generation import prefixes
from cai_jax.generation import score as scoring
from cai_jax.generation.score import choice_logprobs, score
from cai_jax.generation.settings import Stats
from cai_jax.models import transformer

A, C, D = [40, 41, 42, 43], [70], [9] * 12
PROMPTS = [A, C, A, [], D, A]
COMPLETIONS = [
    [[5, 6, 7], [8], [5, 6, 7], []],
    [[10, 11]],
    [[5, 6, 9, 9], [8]],  # the prompt of the first, and one completion of it
    [[12, 1]],
    [],
    [[]],
]


@pytest.fixture(scope="module")
def expected(llama):
    """The same by a slow loop that shares nothing; an empty prompt begins with </s>."""
    return [
        [references.logprobs(llama[1], prompt or [1], text) for text in texts]
        for prompt, texts in zip(PROMPTS, COMPLETIONS)
    ]


@pytest.mark.parametrize("batch_size", [8, 2])
def test_scores_are_those_of_a_slow_loop(llama, expected, batch_size):
    stats = Stats()
    found = score(llama[0], PROMPTS, COMPLETIONS, batch_size=batch_size, stats=stats)
    assert [len(arrays) for arrays in found] == [4, 1, 2, 1, 0, 1]
    for arrays, texts, wanted in zip(found, COMPLETIONS, expected):
        for array, text, logprobs in zip(arrays, texts, wanted):
            assert array.dtype == np.float32
            assert array.shape == (len(text),)
            assert np.allclose(array, logprobs, atol=1e-4)
    # A is in three lines with seven completions, and computed once; D has nothing to score.
    assert stats.forwarded_prompt_tokens == len(A) + len(C) + 1
    assert stats.prompt_tokens == 7 * len(A) + len(C) + 1
    assert stats.generated_tokens == stats.decode_steps == 0
    assert stats.slots == min(batch_size, 8)  # for five distinct completions


def test_chunks_of_positions_change_nothing(llama, expected, monkeypatch):
    model = llama[0]._replace(config=dataclasses.replace(llama[0].config, norm_eps=1.00001e-6))
    # Another config, so that nothing compiled before is used; 3 positions at a time.
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 3 * model.config.vocab_size)
    found = score(model, PROMPTS[:1], COMPLETIONS[:1], batch_size=8)
    for array, logprobs in zip(found[0], expected[0]):
        assert np.allclose(array, logprobs, atol=1e-4)


def test_widths_are_finer_where_that_saves_more_than_its_programs_cost(llama, monkeypatch):
    many, few = [39] * 3200 + [100] * 100, [39] * 16
    parameters = scoring._parameters(llama[0].params)
    assert parameters == sum(array.size for array in jax.tree.leaves(llama[0].params))
    assert [scoring._grid(many, 28_000_000)(n) for n in (0, 7, 39, 41, 100)] == [0, 32, 40, 48, 112]
    assert [scoring._grid(few, 28_000_000)(n) for n in (0, 7, 39, 100)] == [0, 32, 64, 128]
    assert scoring._grid(many, 200_000)(39) == 64
    asked, widths = [[9] * 40, [8] * 37], []
    read = scoring._read
    monkeypatch.setattr(
        scoring, "_read", lambda *given: (widths.append(given[4].shape[1]), read(*given))[1]
    )
    monkeypatch.setattr(scoring, "PROGRAM_FLOPS", 0)
    found = choice_logprobs(llama[0], asked, [[5], [6]], batch_size=2)
    assert widths == [41]
    for row, prompt in zip(found, asked):
        for value, choice in zip(row, (5, 6)):
            assert np.allclose(value, references.logprobs(llama[1], prompt, [choice])[0], atol=1e-4)


FAMILIES = ("gemma2: caps, every other layer windowed", "gpt2: tied")


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_and_cut_prefixes_change_nothing(tmp_path, monkeypatch, family):
    """Positions, windows and caps are those of the text, however it is cut and put together."""
    kind, shape = tiny_models.CASES[family]
    module = tiny_models.write_family(tmp_path, kind, **shape)
    tiny_models.write_tokenizer(tmp_path)
    model = checkpoints.load_model(tmp_path)
    rng = np.random.default_rng(0)

    def words(count):
        return rng.integers(3, 71, count).tolist()

    few_shots = words(17)
    dialogues = [few_shots + words(n) for n in (3, 12, 7)]
    # Few shapes: two levels of segments, and leaves of at most five tokens with their completions.
    prompts = [dialogue + words(n) for dialogue in dialogues for n in (1, 2, 2)]
    prompts += [dialogues[0]]
    monkeypatch.setattr(
        scoring, "build_trie", functools.partial(prefixes.build_trie, least=2, most=17)
    )
    stats = Stats()
    texts = [[words(2), words(1)][: 1 + number % 2] for number in range(len(prompts))]
    told: list[int] = []
    progress = types.SimpleNamespace(advance=told.append)
    found = score(model, prompts, texts, batch_size=8, stats=stats, progress=progress)
    for prompt, of_prompt, arrays in zip(prompts, texts, found):
        for text, array in zip(of_prompt, arrays):
            assert np.allclose(array, references.logprobs(module, prompt, text), atol=1e-4)
    # A last token is read with each prompt's completions, and may be another's token before.
    least = prefixes.distinct_tokens(prompts)
    assert least <= stats.forwarded_prompt_tokens <= least + len(prompts)
    assert stats.prompt_tokens > 4 * least
    assert sum(told) == len(prompts)
    choices = choice_logprobs(model, prompts, [[5], [6]], batch_size=8)
    for prompt, row in zip(prompts, choices):
        full = references.log_softmax(references.next_logits(module, prompt))
        assert np.allclose(row, full[[5, 6]], atol=1e-4)


def test_nothing_to_score_is_nothing(llama):
    assert score(llama[0], [], []) == []
    assert score(llama[0], [A], [[]]) == [[]]
    [[empty]] = score(llama[0], [A], [[[]]])
    assert empty.shape == (0,)


def test_what_has_no_room_or_no_embedding_is_refused(llama):
    model = llama[0]._replace(config=dataclasses.replace(llama[0].config, max_positions=6))
    with pytest.raises(
        InputError, match=r"^b: expected a prompt of at most 3 tokens \(6 positions less 3 tokens"
    ):
        score(model, [C, A], [[[1]], [[1], [5, 6, 7]]], names=["a", "b"])
    with pytest.raises(InputError, match="^a: completion 1: expected tokens .* of 288, found 288"):
        score(llama[0], [C], [[[1], [5, 288]]], names=["a"])
    with pytest.raises(InputError, match="^prompt 0: expected tokens .* of 288, found 300"):
        score(llama[0], [[300]], [[[1]]])


def test_choices_are_read_a_few_texts_at_a_time(llama, monkeypatch):
    """No array is as large as the logits of a batch, let alone of all its positions."""
    model = llama[0]._replace(config=dataclasses.replace(llama[0].config, norm_eps=1.00002e-6))
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 3 * model.config.vocab_size)
    tokens = np.random.default_rng(0).integers(3, 266, (8, 20)).astype(np.int32)
    arguments = np.zeros(8, np.int32), tokens, np.ones_like(tokens), np.full((8, 2), (7, 9))

    def read(params):
        return scoring._read(params, model.config, None, *arguments, "last")

    sizes = [
        variable.aval.size
        for equations in every_jaxpr(jax.make_jaxpr(read)(model.params).jaxpr)
        for equation in equations
        for variable in equation.outvars
    ]
    assert 3 * model.config.vocab_size in sizes
    assert not {8 * model.config.vocab_size, 8 * 20 * model.config.vocab_size} & set(sizes)
    whole = transformer.forward(model.params, model.config, tokens)[0]
    whole = jax.nn.log_softmax(transformer.logits(model.params, model.config, whole))
    assert np.allclose(read(model.params), whole[:, -1, [7, 9]], atol=1e-5)


def every_jaxpr(jaxpr):
    """The equations of a program, and of the programs in it."""
    yield jaxpr.eqns
    for inner in jax.extend.core.subjaxprs(jaxpr):
        yield from every_jaxpr(inner)


def test_choices_of_one_token_and_of_more(llama):
    model, module = llama
    prompts = [A, C, D, []]
    single = choice_logprobs(model, prompts, [[7], [8], [9]], batch_size=2)
    assert single.shape == (4, 3)
    assert single.dtype == np.float32
    for row, prompt in zip(single, prompts):
        full = references.log_softmax(references.next_logits(module, prompt or [1]))
        assert np.allclose(row, full[[7, 8, 9]], atol=1e-4)
    longer = choice_logprobs(model, prompts[:2], [[7], [8, 9]], batch_size=8)
    for row, prompt in zip(longer, prompts):
        wanted = [sum(references.logprobs(module, prompt, choice)) for choice in ([7], [8, 9])]
        assert np.allclose(row, wanted, atol=1e-4)
    assert choice_logprobs(model, [], [[7], [8]]).shape == (0, 2)
    with pytest.raises(InputError, match="^prompt 0: expected a prompt of at most 127 tokens"):
        choice_logprobs(model, [[5] * 128], [[7], [8]])
