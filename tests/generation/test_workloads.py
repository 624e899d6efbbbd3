"""How often a prompt token is computed on the paper's workloads, with its official few-shots."""

import json
import os
import random
import re
from pathlib import Path

import jax
import pytest
from scripted import run_stage

from cai_jax import checkpoints
from cai_jax.generation import generate, prefixes
from cai_jax.generation import score as scoring
from cai_jax.generation.settings import Stats
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
from cai_jax.stages import critique_revise, feedback
from cai_jax.text.constitution import load_constitution

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
PROMPTS = SHARED / "paper/official/prompts"
pytestmark = pytest.mark.skipif(not PROMPTS.is_dir(), reason="the official prompts are not there")
MOST = 1.10  # times the distinct prompt tokens


class Words:
    """A tokenizer of words, each with the space before it; it learns them as they come."""

    bos_id, eos_id, stops = None, 0, ()

    def __init__(self, size):
        self.ids = {"": 0}
        self.size = size

    def encode(self, text):
        pieces = re.findall(r"\s*\S+|\s+$", text)
        ids = [self.ids.setdefault(piece, len(self.ids)) for piece in pieces]
        assert len(self.ids) <= self.size
        return ids

    def encode_prompts(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        words = list(self.ids)
        return "".join(words[i] if i < len(words) else " so" for i in ids)


@pytest.fixture(scope="module")
def model():
    """A random model of 4,096 words and 8,192 positions."""
    config = ModelConfig(
        vocab_size=4096,
        width=16,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=8,
        hidden=16,
        max_positions=8192,
    )
    params = jax.jit(transformer.init_params, static_argnums=0)(config, jax.random.key(0))
    return LanguageModel(config, params, Words(config.vocab_size))


@pytest.fixture
def given(tmp_path, monkeypatch, model):
    """Six prompts, and comparisons of them, in the words of the official few-shots."""
    monkeypatch.setattr(checkpoints, "load_model", lambda reference, mesh=None: model)
    constitution = load_constitution(PROMPTS)
    words = " ".join(constitution.critique_few_shots).split()
    rng = random.Random(0)

    def text(least, most):
        return " ".join(rng.choices(words, k=rng.randint(least, most))).replace(":", "")

    asked = [text(10, 40) for _ in range(6)]
    prompts = [{"id": f"p{n}", "prompt": prompt} for n, prompt in enumerate(asked)]
    pairs = [
        {
            "id": f"p{n}",
            "dialogue": [{"role": "human", "text": prompt}],
            "response_a": text(20, 60),
            "response_b": text(20, 60),
        }
        for n, prompt in enumerate(asked)
    ]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return {
        "model": tmp_path,
        "prompts": tmp_path / "prompts.jsonl",
        "pairs": tmp_path / "pairs.jsonl",
        "constitution": PROMPTS,
    }


def test_critiques_and_revisions_of_four_rounds(tmp_path, given, monkeypatch):
    sent = []
    ask = generate.Ask
    monkeypatch.setattr(generate, "Ask", lambda *parts: (sent.append(parts[0]), ask(*parts))[1])
    lengths = {f"max_{what}_tokens": 20 for what in ("response", "critique", "revision")}
    inputs = {name: given[name] for name in ("model", "prompts", "constitution")}
    counts = run_stage(
        critique_revise, tmp_path / "step", inputs, num_few_shots=5, batch_size=4, **lengths
    )
    assert len(sent) == 6 * 9 and len(counts["principles"]) == 16
    assert counts["few_shots_dropped"] == 0
    distinct = prefixes.distinct_tokens(sent)
    assert counts["prompt_tokens"] == sum(map(len, sent)) > 15 * distinct
    assert counts["forwarded_prompt_tokens"] <= MOST * distinct


def test_feedback_under_sixteen_principles(tmp_path, given, monkeypatch):
    sent, stats = [], Stats()
    choose = scoring.choice_logprobs

    def counted(model, prompts, choices, **options):
        sent.extend(prompts)
        return choose(model, prompts, choices, stats=stats, **options)

    monkeypatch.setattr(scoring, "choice_logprobs", counted)
    inputs = {name: given[name] for name in ("model", "pairs", "constitution")}
    options = {"ensemble": "principles", "num_few_shots": 5, "batch_size": 16}
    run_stage(feedback, tmp_path / "step", inputs, **options)
    assert len(sent) == 6 * 16
    distinct = prefixes.distinct_tokens(sent)
    assert stats.prompt_tokens == sum(map(len, sent)) > distinct
    assert stats.forwarded_prompt_tokens <= MOST * distinct
