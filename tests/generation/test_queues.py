"""Random queues through the slots: each request gets what it gets alone, token for token."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai_jax.errors import InputError
from cai_jax.generation import engine, generate, seating
from cai_jax.generation.settings import SamplingSettings, Stats

KEY = jax.random.key(11)
SHARED = ([], [9, 80, 81, 82, 83, 84], [9, 80, 81, 90, 91, 92, 93, 94, 95, 96])
# All in one compiled mode. The model says any byte as likely, so that stops do come.
FILTERED = tuple(
    SamplingSettings(6, temperature, top_k=top_k, stop=stop)
    for temperature, top_k, stop in (
        (1.0, 40, ()),
        (0.7, 3, ("e", "a", "i")),
        (1.5, 200, ("th", "q", "z", " ", "o")),
    )
)
ANY = (*FILTERED, SamplingSettings(6, 0.0), SamplingSettings(6), SamplingSettings(6, min_p=0.2))


@pytest.fixture(scope="module", autouse=True)
def small_spans():
    """Segments of three tokens are worth a copy; no slot is larger than what was stated."""
    fit = engine.Engine._fit

    def stated(self, lengths):
        fit(self, lengths)
        assert self.span <= self.plan.span

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seating, "LEAST", 3)
        patch.setattr(seating, "LEAST_OWN", 3)
        patch.setattr(engine.Engine, "_fit", stated)
        yield


def requests(ways, most_tail, most_budget):
    """(prompt, settings) of one; many begin alike, some are equal, some have one token."""
    tails = st.lists(st.integers(3, 60), min_size=1, max_size=most_tail)
    budgets = st.one_of(st.just(1), st.integers(1, most_budget))
    prompts = st.tuples(st.sampled_from(SHARED), tails).map(lambda both: [*both[0], *both[1]])

    def with_budget(way, budget):
        return SamplingSettings(
            budget, way.temperature, way.top_k, way.top_p, way.stop, min_p=way.min_p
        )

    return st.tuples(prompts, st.builds(with_budget, st.sampled_from(ways), budgets))


def check(model, alone, queue, slots):
    """One queue against its requests one by one, which `alone` keeps."""
    keys = [number % 3 for number in range(len(queue))]  # some requests are the same in all
    for (prompt, how), key in zip(queue, keys):
        if (tuple(prompt), how, key) not in alone:
            [one] = generate.generate(model, [prompt], how, (KEY, [key]), batch_size=1)
            alone[tuple(prompt), how, key] = one
    expected = [alone[tuple(prompt), how, key] for (prompt, how), key in zip(queue, keys)]
    stats, (prompts, hows) = Stats(), zip(*queue)
    found = generate.generate(model, prompts, hows, (KEY, keys), batch_size=slots, stats=stats)
    for one, other in zip(found, expected):
        assert one.token_ids == other.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert stats.generated_tokens == sum(len(one.token_ids) for one in expected)
    assert stats.forwarded_prompt_tokens <= stats.prompt_tokens == sum(map(len, prompts))


@pytest.fixture(scope="module")
def alone():
    return {}


@given(st.lists(requests(FILTERED, 6, 6), min_size=5, max_size=8), st.sampled_from((2, 5)))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=HealthCheck)
def test_a_random_queue_gives_what_each_request_gives_alone(llama, alone, queue, slots):
    check(llama[0], alone, queue, slots)


@pytest.mark.nightly
@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=HealthCheck)
def test_any_queue_gives_what_each_request_gives_alone(llama, alone, data):
    """Of all ways to sample, any number of slots, longer texts, trunks, prompts in pieces."""
    queue = data.draw(st.lists(requests(ANY, 30, 40), min_size=1, max_size=24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "AHEAD", data.draw(st.sampled_from((8, 64))))
        patch.setattr(engine, "PIECE", data.draw(st.sampled_from((7, 1024))))
        patch.setattr(engine, "ROUND", 4)
        patch.setattr(seating, "LEAST_TRUNK", data.draw(st.sampled_from((5, 256))))
        check(llama[0], alone, queue, data.draw(st.integers(1, 9)))


@given(st.lists(requests(FILTERED, 6, 6), min_size=5, max_size=8), st.data())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=HealthCheck)
def test_a_prompt_longer_than_the_context_is_named_before_anything_is_sampled(llama, queue, data):
    model = llama[0]
    room = model.config.max_positions
    number = data.draw(st.integers(0, len(queue) - 1))
    prompts, hows = map(list, zip(*queue))
    prompts[number] = [5] * (room - hows[number].max_new_tokens + 1)
    names = [f"line {i}" for i in range(len(queue))]
    stats = Stats()
    with pytest.raises(InputError, match=f"^line {number}: expected a prompt of at most .* tokens"):
        generate.generate(model, prompts, hows, (KEY, range(len(queue))), names=names, stats=stats)
    assert stats == Stats()
