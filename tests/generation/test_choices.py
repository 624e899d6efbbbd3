"""Answers at once are those of `choice_logprobs`; after reasoning they are read behind it."""

import jax
import numpy as np
import pytest
import references

from cai_jax.generation.choices import Thinking, answer_choices
from cai_jax.generation.generate import generate
from cai_jax.generation.settings import SamplingSettings

PROMPTS = [[40, 41, 42, 43], [70], [9] * 12]
CHOICES = [[5], [6]]
NAMES = ["a", "b", "c"]
SETTINGS = SamplingSettings(max_new_tokens=6, stop=())


class Numbers:
    """A tokenizer for which texts are the numbers of their tokens."""

    stops = ()

    def __init__(self, tokenizer):
        self.eos_id, self.bos_id = tokenizer.eos_id, None

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def encode(self, text):
        return [int(word) for word in text.split()]

    def encode_prompts(self, texts):
        return [self.encode(text) for text in texts]


@pytest.fixture(scope="module")
def model(llama):
    return llama[0]._replace(tokenizer=Numbers(llama[0].tokenizer))


def logprobs(module, prompt):
    return [references.logprobs(module, prompt, choice)[0] for choice in CHOICES]


def test_an_answer_at_once(model, llama):
    found = answer_choices(model, PROMPTS, CHOICES, None, batch_size=4, names=NAMES)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert np.allclose(answer.logps, logprobs(llama[1], prompt), atol=1e-4)
        assert answer[1:] == (None, len(prompt), False)


def test_an_answer_after_reasoning(model, llama):
    keys = (jax.random.key(0), NAMES)

    def lay_out(number, reasoning):
        # The third text grows beyond the positions of the model.
        return " ".join(map(str, PROMPTS[number])) + f" {reasoning} 7" + " 8" * 128 * (number == 2)

    thinking = Thinking(SETTINGS, keys, lambda text: text.rpartition(" ")[0], lay_out)
    found = answer_choices(model, PROMPTS, CHOICES, thinking, batch_size=4, names=NAMES)
    sampled = generate(model, PROMPTS, SETTINGS, keys, batch_size=4)
    for number, (prompt, answer, completion) in enumerate(zip(PROMPTS, found, sampled)):
        ids = list(completion.token_ids)
        cut = model.tokenizer.encode(completion.text.rpartition(" ")[0])
        assert answer.reasoning == " ".join(map(str, cut))
        assert answer.truncated == (completion.finish_reason == "length")
        whole = [*prompt, *cut, 7]
        if number == 2:
            assert answer.logps is None and answer.num_tokens == len(ids)
        else:
            assert np.allclose(answer.logps, logprobs(llama[1], whole), atol=1e-4)
            assert answer.num_tokens == len(ids) + len(whole)
