"""Models for the tests of stages: one that speaks by rule, and tiny random ones."""

import functools
import json
import types

import numpy as np

PRINCIPLES = [
    {
        "id": name,
        "critique_request": f"Criticise {name}.",
        "revision_request": f"Revise {name}.",
        "comparison": f"Choose by {name}.",
    }
    for name in ("harm", "lies", "tone")
]
CRITIQUE_FEW_SHOT = (
    "\n\nHuman: q{n}\n\nAssistant: a{n}\n\nCritiqueRequest: c{n}\n\nCritique: d{n}"
    "\n\nRevisionRequest: r{n}\n\nRevision: s{n}"
)


def write_constitution(path, num_few_shots=3):
    """A constitution of three principles."""
    numbers = range(num_few_shots)
    value = {
        "name": "tests",
        "provenance": "ours",
        "principles": PRINCIPLES,
        "critique_few_shots": [CRITIQUE_FEW_SHOT.replace("{n}", str(n)) for n in numbers],
        "comparison_few_shots": [
            {"dialogue": f"\n\nHuman: q{n}\n\nAssistant:", "better": f"b{n}", "worse": f"w{n}"}
            for n in numbers
        ],
        "reasoning_few_shots": [f"\n\nHuman: Consider\n\nH: q{n}\n\n\n{{}}" for n in numbers],
    }
    path.write_text(json.dumps(value))
    return path


class Characters:
    """A tokenizer whose tokens are characters."""

    eos_id = 0

    def encode(self, text):
        return [ord(character) for character in text]

    def encode_prompt(self, text):
        return self.encode(text)

    def answer(self, text):
        return f" {text}"

    def encode_prompts(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(map(chr, ids))


def speak(monkeypatch, rule, max_positions=100_000, *, by_key=False):
    """Every model is one that answers the n-th prompt of the whole test by rule(text, n); `by_key`,
    by rule(text, key).

    Returns a list that grows by (prompt, settings, the key's words and the id) a completion.
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.generation import generate

    asked = []
    model = types.SimpleNamespace(
        tokenizer=Characters(), config=types.SimpleNamespace(max_positions=max_positions)
    )

    def say(prompt, settings, key):
        assert len(prompt) + settings.max_new_tokens <= model.config.max_positions
        text = model.tokenizer.decode(prompt)
        said = rule(text, key if by_key else len(asked))
        asked.append((text, settings, key))
        reason = "length" if len(said) >= settings.max_new_tokens else "stop"
        said = said[: settings.max_new_tokens]
        return types.SimpleNamespace(text=said, token_ids=[*said], finish_reason=reason)

    def sample(model, prompts, settings, keys, **_):
        key, ids = keys
        words = jax.random.key_data(key).tolist()
        both = zip(prompts, ids, strict=True)
        return [say(prompt, settings, (*words, record)) for prompt, record in both]

    def converse(model, conversations, count, **_):
        """In turns: all say their first, then all their second."""
        results = [None] * count
        going = [(number, one, None) for number, one in enumerate(conversations)]
        while going:
            wanted = []
            for number, conversation, said in going:
                try:
                    wanted.append((number, conversation, conversation.send(said)))
                except StopIteration as over:
                    results[number] = over.value
            going = [
                (number, one, say(ask.prompt, ask.settings, (*ask.key_bits.tolist(), ask.name)))
                for number, one, ask in wanted
            ]
        return results

    monkeypatch.setattr(checkpoints, "load_model", lambda reference, mesh=None: model)
    monkeypatch.setattr(generate, "generate", sample)
    monkeypatch.setattr(generate, "converse", converse)
    return asked


def choose(monkeypatch, rule):
    """Multiple choices are answered by rule(text) -> two log-probabilities; returns the prompts."""
    from cai_jax.generation import score

    asked = []

    def choice_logprobs(model, prompts, choices, **_):
        assert [model.tokenizer.decode(choice) for choice in choices] == [" (A)", " (B)"]
        texts = [model.tokenizer.decode(prompt) for prompt in prompts]
        asked.extend(texts)
        return np.array([rule(text) for text in texts], np.float32).reshape(-1, 2)

    monkeypatch.setattr(score, "choice_logprobs", choice_logprobs)
    return asked


@functools.cache
def _initialised(seed, max_positions):
    import jax

    from cai_jax.models import transformer
    from cai_jax.models.config import ModelConfig
    from cai_jax.sandbox.tokenizer import vocabulary

    config = ModelConfig(
        vocab_size=len(vocabulary()),
        width=16,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=16,
        hidden=16,
        max_positions=max_positions,
    )
    params = jax.jit(transformer.init_params, static_argnums=0)(config, jax.random.key(seed))
    return config, params


def write_model(folder, seed=0, max_positions=512):
    """A random model's folder, with the world's tokenizer."""
    from cai_jax.models import weights
    from cai_jax.sandbox.tokenizer import write_tokenizer

    write_tokenizer(folder)
    weights.write_folder(folder, *_initialised(seed, max_positions))
    return folder


def run_stage(stage, folder, inputs, **changes):
    """Runs a stage as the runner does; the counts that it returns."""
    config = stage.default_config()
    config.update({"seed": 0, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
    config.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    return stage.run(config, inputs, folder)
