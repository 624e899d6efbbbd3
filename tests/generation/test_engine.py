"""Slots that are refilled, against the same requests one by one."""

import dataclasses
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import tiny_models
import torch
from ml_collections import ConfigDict

from cai_jax import checkpoints
from cai_jax.core import mesh, sharding
from cai_jax.errors import InputError
from cai_jax.generation import batching, engine, generate, prefixes, seating, sizing, slots
from cai_jax.generation.settings import SamplingSettings, Stats
from cai_jax.models import attention
from cai_jax.models.cache import Past

KEY = jax.random.key(3)
# Each with another budget; some stop at tokens of the byte-level vocabulary, or across two.
SETTINGS = (
    SamplingSettings(9, 0.0),
    SamplingSettings(20, 1.0, stop=("e",)),
    SamplingSettings(1, 1.3),
    SamplingSettings(14, 0.7, top_k=9, top_p=0.9),
    SamplingSettings(17, 1.0, min_p=0.05, stop=("zq", "a", "ab")),
)


@pytest.fixture
def small_spans(monkeypatch):
    """Caches that grow and shrink within a few tokens, segments of three on, trunks of nine.

    Their keys are cut into blocks of eight columns.
    """
    monkeypatch.setattr(engine, "AHEAD", 8)
    monkeypatch.setattr(engine, "PIECE", 7)
    monkeypatch.setattr(engine, "ROUND", 4)
    monkeypatch.setattr(slots, "BLOCK", 8)
    monkeypatch.setattr(seating, "LEAST_TRUNK", 9)
    monkeypatch.setattr(seating, "LEAST", 3)
    monkeypatch.setattr(seating, "LEAST_OWN", 3)


def queue(rng, count):
    """Prompts of which many begin alike, some are equal and some have one token, and settings."""

    def words(number):
        return rng.choices(range(3, 266), k=number)

    few_shots = words(11)
    prompts = []
    for _ in range(count):
        kind = rng.randrange(4)
        if kind == 0 and prompts:
            prompts.append(list(rng.choice(prompts)))
        else:
            prompts.append([*few_shots[: (0, 11, 5)[kind % 3]], *words(rng.choice([1, 2, 9]))])
    return prompts, [rng.choice(SETTINGS) for _ in prompts]


def run(model, prompts, settings, ids, batch_size, **options):
    return generate.generate(model, prompts, settings, (KEY, ids), batch_size=batch_size, **options)


def test_a_refilled_queue_gives_what_each_request_gives_alone(llama, small_spans):
    model = llama[0]
    rng = random.Random(0)
    prompts, settings = queue(rng, 40)
    alone = [
        run(model, [prompt], [one], [number], 1)[0]
        for number, (prompt, one) in enumerate(zip(prompts, settings))
    ]
    assert {completion.finish_reason for completion in alone} == {"stop", "length"}
    assert {completion.text for completion in alone if not completion.token_ids} == set()
    for batch_size in (4, 7):
        order = rng.sample(range(40), 40)
        stats = Stats()
        together = run(
            model,
            [prompts[i] for i in order],
            [settings[i] for i in order],
            order,
            batch_size,
            stats=stats,
        )
        for number, found in zip(order, together):
            expected = alone[number]
            assert found.token_ids == expected.token_ids
            assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
            assert np.allclose(found.logprobs, expected.logprobs, atol=1e-4)
            assert np.allclose(found.tempered_logprobs, expected.tempered_logprobs, atol=1e-4)
        assert stats.generated_tokens == sum(len(completion.token_ids) for completion in alone)
        assert stats.forwarded_prompt_tokens < 0.75 * stats.prompt_tokens
        assert stats.slots == batch_size


def test_chunks_and_pieces_of_any_length_give_the_same_texts(llama, small_spans, monkeypatch):
    model, (prompts, settings) = llama[0], queue(random.Random(1), 12)
    expected, stats = run(model, prompts, settings, range(12), 4), Stats()
    decode, extend, chunks, pieces = slots.decode_jit, slots.extend_jit, set(), set()

    def decoding(*arguments):
        chunks.add(arguments[7])
        return decode(*arguments)

    def extending(*arguments):
        pieces.add(arguments[5].shape[1])
        return extend(*arguments)

    monkeypatch.setattr(engine, "chunk_steps", lambda: 5)
    monkeypatch.setattr(engine, "piece_tokens", lambda *arguments: 3)
    monkeypatch.setattr(slots, "decode_jit", decoding)
    monkeypatch.setattr(slots, "extend_jit", extending)
    found = run(model, prompts, settings, range(12), 4, stats=stats)
    assert chunks == {5} and pieces == {batching.bucket(3)}
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert stats.decode_steps > 5


def test_layers_are_in_a_loop_where_weights_have_no_room_twice(llama, monkeypatch):
    model, prompts = llama[0], [[5, 6, 7], [8]]
    settings = SamplingSettings(6, temperature=0.0)
    expected = run(model, prompts, settings, range(2), 2)
    size = sum(array.nbytes for array in jax.tree.leaves(model.params))
    for memory, unroll in ((2.6 * size, 0), (2.4 * size, 1)):  # four fifths of it, and twice these

        class Device:
            def memory_stats(self, memory=memory):
                return {"bytes_limit": memory}

        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda: [Device()])
            found = engine.by_layer(model, None)
        assert found.config.scan_unroll == unroll
        assert isinstance(found.params["layers"], tuple) == (unroll == 0)
    looped = model._replace(config=found.config)
    for one, other in zip(run(looped, prompts, settings, range(2), 2), expected, strict=True):
        assert one.token_ids == other.token_ids


def test_a_gpu_reads_prompts_whole_where_its_kernel_attends(llama, monkeypatch):
    config = dataclasses.replace(llama[0].config, dtype="bfloat16")
    assert engine.piece_tokens(config, 8) == 1024 and slots.chunk_steps() == 16
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert slots.chunk_steps() == 32
    assert [engine.piece_tokens(config, rows) for rows in (1, 8, 64, 256)] == [
        65_536,
        8192,
        1024,
        1024,
    ]
    # What cuDNN does not compute in float32 would hold weights [T, S] for every head.
    assert engine.piece_tokens(dataclasses.replace(config, dtype="float32"), 8) == 1024


def test_keys_in_blocks_give_the_products_of_whole_ones(llama):
    rng = np.random.default_rng(0)
    keys, values, queries = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((3, 2, 16, 192), (3, 2, 192, 16), (3, 2, 2, 16))
    )
    cut = slots.in_blocks(Past((keys,), (values,), None), llama[0].config).keys[0]
    assert cut.shape == (3, 2, 3, 16, 64)
    whole = np.einsum("bkth,bkhs->bkts", np.float64(queries), np.float64(keys))
    assert np.allclose(attention._products(queries, cut), whole, atol=1e-5)
    assert np.array_equal(attention._products(queries, cut), attention._products(queries, keys))


@pytest.mark.parametrize("family", ["gemma2: caps, every other layer windowed", "gpt2: tied"])
def test_greedy_is_that_of_transformers_in_slots_with_shared_prefixes(
    tmp_path, small_spans, family
):
    """Windows count the tokens of the text, positions are its own, wherever it is seated."""
    kind, shape = tiny_models.CASES[family]
    module = tiny_models.write_family(tmp_path, kind, **shape)
    tiny_models.write_tokenizer(tmp_path)
    model = checkpoints.load_model(tmp_path)
    model = model._replace(tokenizer=Endless(model.tokenizer))
    rng = random.Random(1)
    few_shots = rng.choices(range(3, 71), k=12)
    prompts = [few_shots + rng.choices(range(3, 71), k=k) for k in (3, 1, 7, 5, 2, 4)]
    budgets = [14, 3, 8, 20, 1, 11]
    stats = Stats()
    settings = [SamplingSettings(budget, 0.0) for budget in budgets]
    found = run(model, prompts, settings, range(6), 3, stats=stats)
    for prompt, budget, completion in zip(prompts, budgets, found):
        expected = module.generate(
            torch.tensor([prompt]), max_new_tokens=budget, do_sample=False, eos_token_id=None
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()
    distinct = prefixes.distinct_tokens(prompts)
    assert distinct <= stats.forwarded_prompt_tokens <= len(few_shots) + 22
    assert sum(budgets) / 3 <= stats.decode_steps < 28  # three at a time; batches would take 31


class Endless:
    """A tokenizer of which no token ends a text."""

    bos_id = eos_id = None
    stops = ()

    def __init__(self, tokenizer):
        self.encode, self.decode = tokenizer.encode, tokenizer.decode


def test_slots_hold_what_follows_the_trunk_alone(llama, small_spans, monkeypatch):
    """What many begin with is there once, however long; another trunk follows when it is free."""
    model, module = llama[0]._replace(tokenizer=Endless(llama[0].tokenizer)), llama[1]
    spans, trunks = [], []
    fit, grow = engine.Engine._fit, seating.Held.grow
    monkeypatch.setattr(
        engine.Engine, "_fit", lambda self, *given: (fit(self, *given), spans.append(self.span))
    )
    monkeypatch.setattr(
        seating.Held, "grow", lambda self, trunk: (grow(self, trunk), trunks.append(len(trunk)))
    )
    rng = random.Random(6)
    few_shots = [rng.choices(range(3, 266), k=60) for _ in range(2)]
    prompts = [few_shots[n // 4] + rng.choices(range(3, 266), k=2 + n % 3) for n in range(8)]
    stats = Stats()
    found = run(model, prompts, SamplingSettings(5, 0.0), range(8), 4, stats=stats)
    for prompt, completion in zip(prompts, found):
        tokens, *_ = references.sample(module, prompt, [0] * 5, [], temperature=0)
        assert completion.token_ids == tokens
    assert trunks == [60, 60] and max(spans) == engine.SMALLEST_SPAN
    assert stats.forwarded_prompt_tokens == prefixes.distinct_tokens(prompts)


def test_a_long_completion_holds_back_nobody(llama):
    model = llama[0]._replace(tokenizer=Endless(llama[0].tokenizer))
    rng = random.Random(2)
    prompts = [rng.choices(range(3, 266), k=5) for _ in range(16)]
    prompts[7] += [9]  # the longest is the first to be seated
    settings = [SamplingSettings(4, 0.0)] * 16
    settings[7] = SamplingSettings(40, 0.0)
    stats = Stats()
    found = run(model, prompts, settings, range(16), 4, stats=stats)
    assert [len(completion.token_ids) for completion in found] == [4] * 7 + [40] + [4] * 8
    # The fifteen others take three slots five times, 20 steps; four batches would take 52.
    assert stats.decode_steps == 40


def test_the_last_request_takes_the_first_slot_that_is_free(llama):
    model = llama[0]._replace(tokenizer=Endless(llama[0].tokenizer))
    prompts = [[7 + number] * 5 for number in range(10)]
    settings = [SamplingSettings(2 if number == 3 else 12, 0.0) for number in range(10)]
    stats = Stats()
    run(model, prompts, settings, range(10), 9, stats=stats)
    assert sizing.plan_slots(model.config, 10, 9, 32).refill == 2
    assert stats.decode_steps == 2 + 12


def test_slots_are_fitted_to_memory_and_stated_before(llama, monkeypatch):
    model = llama[0]
    spans, fit = [], engine.Engine._fit
    monkeypatch.setattr(
        engine.Engine, "_fit", lambda self, *given: (fit(self, *given), spans.append(self.span))
    )
    prompts = [[5] * 20 + [i] for i in range(3, 19)]
    settings = SamplingSettings(6, 0.0)
    said: list[str] = []
    progress = SimpleNamespace(advance=lambda count: None, say=said.append)
    base = run(model, prompts, settings, range(16), 16, progress=progress)
    plan = sizing.plan_slots(model.config, 16, 16, 32)
    # Keys and values of 2 layers, 1 head, 8 dims in float32: 128 bytes a column.
    assert sizing.column_bytes(model.config) == 128
    # 16 slots of 32 columns, while they grow twice, and once for prompts that go on; 16 a chunk;
    # a trunk, and a copy of it while it is read.
    assert plan == (16, 16, 32, 128 * (2 * 16 * 32 + 2 * 16 * 32 + 2 * 32 + 16 * 16), False, False)
    assert said == [str(plan)] == ["16 slots of up to 32 positions: 0.3 MiB of keys and values"]
    stats = Stats()
    budgets = [1 + number % 6 for number in range(16)]
    shorter = [dataclasses.replace(settings, max_new_tokens=budget) for budget in budgets]
    fewer = run(
        model, prompts, shorter, range(16), 16, memory=110_000, progress=progress, stats=stats
    )
    half = sizing.plan_slots(model.config, 16, 16, 32, 110_000)
    assert half.slots == stats.slots == 8 and said[1:] == [str(half)]
    assert half.bytes <= 110_000 < plan.bytes
    for completion, whole, budget in zip(fewer, base, budgets):
        assert completion.token_ids == whole.token_ids[:budget]
    assert set(spans) == {32}  # those that go on while others are placed need no more either
    with pytest.raises(
        InputError,
        match=r"^memory: expected at least 0\.\d MiB for 1 slots of 32 positions, found 0\.0 MiB; "
        "lower max_new_tokens",
    ):
        run(model, prompts, settings, range(16), 16, memory=1000)
    half = dataclasses.replace(model.config, dtype="bfloat16")
    assert sizing.column_bytes(half) == 64


@pytest.mark.parametrize(
    "axes",
    [
        (2, 1, 2),
        pytest.param((1, 2, 4), marks=pytest.mark.nightly),
        pytest.param((1, 1, 2), marks=pytest.mark.nightly),
        pytest.param((4, 2, 1), marks=pytest.mark.nightly),
    ],
)
def test_slots_over_data_and_heads_over_tensor_say_the_same(tmp_path, small_spans, axes):
    """Refilled slots, copies of others, a trunk: on a mesh as on one device."""
    kv_heads = max(2, axes[-1])  # parameters refuse a mesh that does not divide them
    tiny_models.write_llama(tmp_path, num_attention_heads=4, num_key_value_heads=kv_heads)
    model = checkpoints.load_model(tmp_path)
    prompts, settings = queue(random.Random(7), 10)
    expected = run(model, prompts, settings, range(10), 4)
    devices = mesh.make_mesh(ConfigDict(dict(zip(("data", "fsdp", "tensor"), axes))))
    params = jax.device_put(model.params, sharding.tree_shardings(model.params, devices))
    split = model._replace(params=params)
    found = run(split, prompts, settings, range(10), 4, mesh=devices)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_other_weights_need_no_other_program(llama):
    model = llama[0]
    prompts, settings = [[7, 8, 9], [10, 11], [12]], SamplingSettings(5, 0.0)
    before = run(model, prompts, settings, range(3), 2)
    other = model._replace(params=jax.tree.map(lambda array: 1.5 * array, model.params))
    stats = Stats()
    after = run(other, prompts, settings, range(3), 2, stats=stats)
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    assert stats.seconds > 0 == stats.compile_seconds


def test_an_abandoned_queue_leaves_nothing_behind(llama):
    """Whoever stops asking gets no more; the next call is as any other."""
    model = llama[0]
    prompts = [[7, 8, 9], [10, 11], [12]]
    settings = SamplingSettings(5, 0.0)
    expected = run(model, prompts, settings, range(3), 2)
    bits = np.asarray(jax.random.key_data(jax.random.fold_in(KEY, 0)))
    sessions = (generate.once(engine.Request(prompt, settings, bits)) for prompt in prompts)
    plan = sizing.plan_slots(model.config, 3, 2, 32)
    completing = engine.serve(model, sessions, plan, None, Stats())
    number, completion = next(completing)
    assert completion.token_ids == expected[number].token_ids
    completing.close()
    again = run(model, prompts, settings, range(3), 2)
    assert [c.token_ids for c in again] == [c.token_ids for c in expected]


@pytest.mark.parametrize(
    ("batch_size", "least_trunk"),
    [
        (3, 60),
        pytest.param(3, 256, marks=pytest.mark.nightly),
        pytest.param(8, 256, marks=pytest.mark.nightly),
    ],
)
def test_chains_go_on_in_their_slots_and_say_what_each_prompt_says(
    llama, monkeypatch, batch_size, least_trunk
):
    """Critiques and revisions behind few-shots, of 16 principles: what is there is not read again.

    Tokens written by the model are in later prompts, and were never read as such.
    """
    monkeypatch.setattr(seating, "LEAST_TRUNK", least_trunk)
    model = llama[0]._replace(tokenizer=Endless(llama[0].tokenizer))
    rng = random.Random(4)

    def words(count):
        return rng.choices(range(3, 266), k=count)

    few_shots, critique, revision = words(74), words(4), words(4)
    principles = [words(9) for _ in range(16)]
    dialogues = [words(rng.randint(5, 11)) for _ in range(12)]
    asked = []

    def chain(number, drawn):
        def ask(prompt, what, budget):
            bits = np.asarray([number, what], np.uint32)
            settings = SamplingSettings(budget, 1.0)
            completion = yield generate.Ask(prompt, settings, bits, f"{number}")
            asked.append((prompt, settings, bits, completion))
            return completion.token_ids

        text = yield from ask(dialogues[number], 0, 6 + number % 3)
        for step, principle in enumerate(drawn):
            prompt = [*few_shots, *dialogues[number], *text, *principle, *critique]
            said = yield from ask(prompt, 2 * step + 1, 7)
            text = yield from ask([*prompt, *said, *revision], 2 * step + 2, 6 + number % 3)
        return text

    stats = Stats()
    chains = [chain(number, rng.sample(principles, 4)) for number in range(12)]
    last = generate.converse(model, chains, 12, batch_size=batch_size, stats=stats)
    assert len(asked) == 12 * 9 and len({tuple(text) for text in last}) == 12
    prompts, settings, bits, completions = zip(*asked)
    distinct = prefixes.distinct_tokens(prompts)
    assert stats.prompt_tokens == sum(map(len, prompts)) > 5 * distinct
    assert stats.forwarded_prompt_tokens <= 1.1 * distinct
    keys = jax.random.wrap_key_data(np.stack(bits))
    alone = generate.generate(model, prompts, settings, keys, batch_size=batch_size)
    assert [c.token_ids for c in alone] == [c.token_ids for c in completions]
    for one, other in zip(alone, completions):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_eight_bits_round_by_half_a_step_at_most(llama, small_spans):
    numbers = np.random.default_rng(0).normal(size=(3, 2, 5, 8)).astype(np.float32)
    numbers[0, 0, 0] = 0
    whole, factors = slots._in_eight_bits(numbers, -1)
    assert whole.dtype == np.int8 and factors.shape == (3, 2, 5)
    assert np.allclose(factors, np.abs(numbers).max(-1) / 127)
    wrong = np.abs(np.asarray(whole) * np.asarray(factors)[..., None] - numbers)
    assert (wrong <= np.asarray(factors)[..., None] * 0.5001).all() and not whole[0, 0, 0].any()

    model, module = llama
    model = model._replace(tokenizer=Endless(model.tokenizer))
    rng = random.Random(5)
    trunk = rng.choices(range(3, 266), k=10)  # not rounded
    prompts = [trunk * (number > 0) + rng.choices(range(3, 266), k=9) for number in range(4)]
    found = run(model, prompts, SamplingSettings(20, 0.0), range(4), 4, eight_bits=True)
    exact = [references.logprobs(module, p, c.token_ids) for p, c in zip(prompts, found)]
    wrong = np.abs(np.subtract([completion.logprobs for completion in found], exact))
    assert 1e-5 < wrong.mean() < 0.01
    # A byte a number, and a factor of four bytes for the 8 of a head.
    assert sizing.column_bytes(model.config, eight_bits=True) == 2 * 2 * 1 * (8 + 4)
