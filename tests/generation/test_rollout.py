"""Rollouts, compiled into one program, against a slow loop without a cache."""

import functools

import jax
import numpy as np
import references

from cai_jax.generation.distribution import uniforms
from cai_jax.generation.rollout import rollout

PROMPTS = [[40, 41, 42, 43, 44], [50], [60, 61, 62], [70, 71]]
R, PAD = 8, 9
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(2), np.arange(4))


def test_tokens_and_log_probabilities_are_those_of_a_slow_loop(llama):
    model, module = llama
    tokens, mask = np.zeros((2, 4, 5), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, 5 - len(prompt) :] = prompt
        mask[row, 5 - len(prompt) :] = 1
    roll = jax.jit(
        functools.partial(rollout, config=model.config, max_new_tokens=R, pad_id=PAD),
        static_argnames=("stop_ids", "temperature"),
    )
    numbers = np.asarray(uniforms(KEYS, R))
    slow = [references.sample(module, p, row) for p, row in zip(PROMPTS, numbers)]

    # Two tokens that end rows 0 and 2; the end is kept, and padding follows it.
    stops = (slow[0][0][2], slow[2][0][5])
    ended = roll(model.params, tokens=tokens, mask=mask, keys=KEYS, stop_ids=stops)
    lengths = []
    for row, (sampled, logprobs, _) in enumerate(slow):
        length = next((i + 1 for i, token in enumerate(sampled) if token in stops), R)
        lengths.append(length)
        assert np.asarray(ended.mask[row]).tolist() == [i < length for i in range(R)]
        expected = sampled[:length] + [PAD] * (R - length)
        assert np.asarray(ended.tokens[row]).tolist() == expected
        assert np.abs(ended.logprobs[row, :length] - np.array(logprobs[:length])).max() < 1e-4
        assert not np.asarray(ended.logprobs[row, length:]).any()
    assert lengths[0] <= 3
    assert lengths[2] <= 6

    # Without stops all rows run on. At another temperature the log-probabilities stay the policy's.
    cold = roll(model.params, tokens=tokens, mask=mask.astype(bool), keys=KEYS, temperature=0.5)
    assert cold.mask.all()
    for row, prompt in enumerate(PROMPTS):
        sampled, logprobs, _ = references.sample(module, prompt, numbers[row], temperature=0.5)
        assert np.asarray(cold.tokens[row]).tolist() == sampled
        assert np.abs(cold.logprobs[row] - np.array(logprobs)).max() < 1e-4
