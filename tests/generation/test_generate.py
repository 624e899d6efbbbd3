"""Sampling many prompts, against transformers and a slow loop without a cache."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import references
import torch
from ml_collections import ConfigDict

from cai_jax.core import mesh, sharding
from cai_jax.errors import InputError
from cai_jax.generation.distribution import uniforms
from cai_jax.generation.generate import generate
from cai_jax.generation.score import score
from cai_jax.generation.settings import SamplingSettings, Stats

# All tests decode 8 rows of 17 + 24 slots where they can, and so share compiled programs.
BUDGET = 20
LENGTHS = (17, 2, 5, 16, 2, 9, 12, 3)
PROMPTS = [
    np.random.default_rng(i).integers(3, 266, length).tolist() for i, length in enumerate(LENGTHS)
]
KEY = jax.random.key(11)
LETTERS = "abcdefghijklmnopq"


class Pairs:
    """A tokenizer whose token i is the two letters of i in base 17; no token ends a text."""

    bos_id = None
    eos_id = None
    stops = ()

    def decode(self, ids):
        return "".join(LETTERS[i // 17] + LETTERS[i % 17] for i in ids)

    def encode(self, text):
        pairs = zip(text[::2], text[1::2])
        return [LETTERS.index(a) * 17 + LETTERS.index(b) for a, b in pairs] + [0] * (len(text) % 2)


@pytest.fixture(scope="module")
def endless(llama):
    """The model with a tokenizer that ends nothing."""
    return llama[0]._replace(tokenizer=Pairs())


@pytest.fixture(scope="module")
def greedy(llama):
    """Transformers' own greedy tokens after each prompt."""
    _, module = llama
    return [
        module.generate(
            torch.tensor([prompt]), max_new_tokens=BUDGET, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


def ended_at(tokens, ends):
    """The tokens up to the first of `ends`, kept."""
    count = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:count]


def run(model, prompts=PROMPTS, keys=(KEY, range(8)), stats=None, batch_size=8, **settings):
    settings = SamplingSettings(**{"max_new_tokens": BUDGET, "temperature": 0.0} | settings)
    return generate(model, prompts, settings, keys, batch_size=batch_size, stats=stats)


def test_greedy_is_transformers_token_for_token(endless, greedy, llama):
    stats = Stats()
    completions = run(endless, stats=stats)
    assert [completion.token_ids for completion in completions] == greedy
    assert len({tuple(tokens) for tokens in greedy}) == 8
    for prompt, completion in zip(PROMPTS, completions):
        expected = references.logprobs(llama[1], prompt, completion.token_ids)
        assert np.abs(np.subtract(completion.logprobs, expected)).max() < 1e-4
        assert completion.tempered_logprobs == [0.0] * BUDGET
        assert completion.finish_reason == "length"
        assert completion.text == Pairs().decode(completion.token_ids)
    assert stats.seconds > stats.compile_seconds >= 0
    assert dataclasses.replace(stats, seconds=0, compile_seconds=0) == Stats(
        prompt_tokens=sum(LENGTHS),
        forwarded_prompt_tokens=sum(LENGTHS),
        generated_tokens=8 * BUDGET,
        decode_steps=BUDGET,
        slots=8,
    )


def test_the_end_of_text_is_kept_and_ends_the_loop(endless, greedy):
    # A token that all rows come to at different times, or most.
    counts = {token: sum(token in row for row in greedy) for row in greedy for token in row}
    end = max(counts, key=lambda token: (counts[token], token))
    tokenizer = Pairs()
    tokenizer.eos_id = end
    stats = Stats()
    completions = run(endless._replace(tokenizer=tokenizer), stats=stats)
    expected = [ended_at(row, [end]) for row in greedy]
    assert [completion.token_ids for completion in completions] == expected
    for completion, tokens in zip(completions, expected):
        ended = tokens[-1] == end
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.text == tokenizer.decode(tokens[:-1] if ended else tokens)
        assert len(completion.logprobs) == len(completion.tempered_logprobs) == len(tokens)
    assert {c.finish_reason for c in completions} >= {"stop"}
    assert stats.generated_tokens == sum(map(len, expected)) < 8 * BUDGET
    assert stats.decode_steps == max(map(len, expected))

    # Rows that all end early end the loop early.
    tokenizer.eos_id = greedy[0][3]
    expected = ended_at(greedy[0], [greedy[0][3]])
    stats = Stats()
    again = run(endless._replace(tokenizer=tokenizer), [PROMPTS[0]] * 8, stats=stats)
    assert [completion.token_ids for completion in again] == [expected] * 8
    assert stats.decode_steps == len(expected) <= 4


def test_stop_strings_across_tokens_end_text_tokens_and_loop(endless, greedy):
    text = Pairs().decode(greedy[0])
    # The second letter of a token, all of the next and the first of the one after it.
    begin = next(i for i in range(3, 27, 2) if text.find(text[i : i + 4]) == i)
    stop = text[begin : begin + 4]
    kept = begin // 2 + 3
    stats = Stats()
    completions = run(endless, [PROMPTS[0]] * 8, stop=(stop, "aqaqaqaqa"), stats=stats)
    for completion in completions:
        assert completion.text == text[:begin]
        assert completion.token_ids == greedy[0][:kept]
        assert len(completion.logprobs) == kept
        assert completion.finish_reason == "stop"
    assert stats.decode_steps == 16  # the text is looked at every 16 tokens
    assert stats.generated_tokens == 8 * kept


def test_a_stop_of_one_token_ends_the_loop_at_once(endless, greedy):
    stop = Pairs().decode([greedy[0][5]])
    text = Pairs().decode(greedy[0])
    stats = Stats()
    completion = run(endless, [PROMPTS[0]] * 8, stop=(stop,), stats=stats)[7]
    assert completion.text == text[: text.find(stop)]
    assert stats.decode_steps == greedy[0].index(greedy[0][5]) + 1
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 1.3, "top_k": 7, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 10**12, "top_p": 0.5},
    ],
    ids=str,
)
def test_samples_are_those_of_a_slow_loop(llama, settings):
    model, module = llama
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(8))
    numbers = np.asarray(uniforms(keys, 8))
    completions = run(model, keys=keys, **settings)
    for prompt, row, completion in zip(PROMPTS, numbers, completions):
        tokens, logprobs, tempered = references.sample(module, prompt, row, [1], **settings)
        count = len(tokens)
        assert completion.token_ids[:count] == tokens
        assert np.abs(np.subtract(completion.logprobs[:count], logprobs)).max() < 1e-4
        assert np.abs(np.subtract(completion.tempered_logprobs[:count], tempered)).max() < 1e-4


def test_a_completion_depends_on_its_prompt_and_key_alone(llama):
    model, _ = llama
    base = run(model, temperature=1.0)
    assert len({tuple(completion.token_ids) for completion in base}) == 8

    def same(found, expected):
        assert found.token_ids == expected.token_ids
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert np.allclose(found.logprobs, expected.logprobs, atol=1e-5)

    for batch_size in (1, 3):
        for found, expected in zip(run(model, temperature=1.0, batch_size=batch_size), base):
            same(found, expected)
    order = [5, 0, 7, 3, 1, 6, 2, 4]
    shuffled = run(model, [PROMPTS[i] for i in order], (KEY, order), temperature=1.0)
    for place, number in enumerate(order):
        same(shuffled[place], base[number])
    # Equal ids and prompts, equal completions; other ids, others; and ids may be strings.
    twins = run(model, [PROMPTS[0]] * 8, (KEY, [0, 0, 1, 2, "a", "a", "b", 3]), temperature=1.0)
    same(twins[0], base[0])
    same(twins[1], base[0])
    same(twins[4], twins[5])
    assert len({tuple(twin.token_ids) for twin in twins}) == 6
    other = run(model, keys=(jax.random.key(12), range(8)), temperature=1.0)
    assert all(a.token_ids != b.token_ids for a, b in zip(other, base))


def test_a_mesh_samples_and_scores_the_same(llama):
    model, _ = llama
    base = run(model, temperature=1.0)
    devices = mesh.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "tensor": 1}))
    params = jax.device_put(model.params, sharding.tree_shardings(model.params, devices))
    split = model._replace(params=params)
    settings = SamplingSettings(BUDGET, 1.0)
    for batch_size in (8, 5):  # 5 rows do not divide over 4 devices, 8 do
        found = generate(
            split, PROMPTS, settings, (KEY, range(8)), batch_size=batch_size, mesh=devices
        )
        assert [c.token_ids for c in found] == [c.token_ids for c in base]
        for one, other in zip(found, base):
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)
    texts = [[completion.token_ids] for completion in base]
    for [array], completion in zip(score(split, PROMPTS, texts, mesh=devices), base):
        assert np.allclose(array, completion.logprobs, atol=1e-5)


def test_first_tokens_of_many_keys_have_the_models_distribution(llama):
    model, module = llama
    count = 2048
    completions = run(
        model,
        [PROMPTS[2]] * count,
        (KEY, range(count)),
        batch_size=1024,
        max_new_tokens=1,
        temperature=0.7,
    )
    tokens = np.array([completion.token_ids[0] for completion in completions])
    expected = count * np.exp(
        references.log_softmax(references.next_logits(module, PROMPTS[2]) / 0.7)
    )
    order = np.argsort(expected)
    # 24 groups of tokens, rare ones together.
    groups = np.empty(len(expected), int)
    groups[order] = np.minimum(np.cumsum(expected[order]) * 24 / count, 23).astype(int)
    expected = np.bincount(groups, expected, 24)
    found = np.bincount(groups[tokens], minlength=24)
    used = expected > 0
    statistic = ((found - expected)[used] ** 2 / expected[used]).sum()
    assert used.sum() > 10
    assert statistic < 49.7  # the 0.999 quantile with 23 degrees of freedom, or fewer


def test_prompts_of_one_token_and_of_none(llama):
    model, module = llama
    completions = run(model, [[], [1], [7]], (KEY, range(3)), max_new_tokens=6)
    for completion, prompt in zip(completions, ([1], [1], [7])):
        tokens, logprobs, _ = references.sample(module, prompt, [0] * 6, [1], temperature=0)
        assert completion.token_ids == tokens
        assert np.allclose(completion.logprobs, logprobs, atol=1e-4)


def test_no_prompts_give_no_completions(llama):
    stats = Stats()
    assert run(llama[0], [], (KEY, []), stats=stats) == []
    assert (stats.generated_tokens, stats.decode_steps) == (0, 0)


def test_a_prompt_without_room_is_refused(llama):
    short = llama[0]._replace(config=dataclasses.replace(llama[0].config, max_positions=37))
    with pytest.raises(
        InputError,
        match=r"^prompt 1: expected a prompt of at most 17 tokens \(37 positions less 20 "
        r"max_new_tokens\), found 18",
    ):
        run(short, [PROMPTS[0], [5] * 18], (KEY, [0, 1]))
    with pytest.raises(InputError, match="^prompt 0: expected a prompt of at most 0 tokens"):
        run(short, [[5]], (KEY, [0]), max_new_tokens=99)


def test_progress_and_stats_add_up_over_batches(llama):
    told: list[int] = []
    stats = Stats()
    settings = SamplingSettings(BUDGET, 0.0)
    for _ in range(2):
        generate(
            llama[0],
            [*PROMPTS, *PROMPTS[:2]],
            settings,
            (KEY, range(10)),
            batch_size=8,
            stats=stats,
            progress=SimpleNamespace(advance=told.append, say=str),
        )
    assert told == [1] * 20
    assert stats.prompt_tokens == 2 * (sum(LENGTHS) + sum(LENGTHS[:2]))
    assert stats.slots == 8


def test_keys_must_be_as_many_as_prompts(llama):
    with pytest.raises(ValueError, match="8 prompts need as many keys; got 3"):
        run(llama[0], keys=(KEY, range(3)))
