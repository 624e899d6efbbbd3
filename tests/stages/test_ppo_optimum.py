"""PPO where the optimum is known: on spaces of responses that can be counted.

The programs are those of the stage, on a random transformer; only the scores are not a preference
model's but a given function of the tokens.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from world_models import one_device

from cai_jax.algorithms.ppo import Controls
from cai_jax.core import mesh, training
from cai_jax.core.optimizer import make_optimizer
from cai_jax.data.prompt_batches import PromptBatch
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
from cai_jax.stages import ppo

VOCABULARY, EOS, PROMPT = 8, 1, [3, 5]


class Task:
    """The compiled programs for one setting, and `train`, which returns the last state."""

    def __init__(self, batch, **changes):
        self.config = one_device(
            ppo.default_config(),
            prompts_per_iteration=1,
            samples_per_prompt=batch,
            missing_eos_penalty=0.0,
            gae_lambda=1.0,
            weight_decay=0.0,
            value_coefficient=0.5,
            **changes,
        )
        self.shape = ModelConfig(
            vocab_size=VOCABULARY,
            width=32,
            layers=1,
            heads=2,
            kv_heads=2,
            head_dim=16,
            hidden=64,
            max_positions=16,
        )
        self.batch = batch
        tokenizer = SimpleNamespace(eos_id=EOS)
        init = jax.jit(lambda key: transformer.init_params(self.shape, key))
        self.models = lambda seed: LanguageModel(self.shape, init(jax.random.key(seed)), tokenizer)
        config = self.config
        updates = config.iterations * config.epochs * config.minibatches
        optimizer = make_optimizer(config, updates)
        device_mesh = mesh.make_mesh(config.mesh)
        model = self.models(0)
        judge = model._replace(params=transformer.add_score_head(model.params, self.shape))
        self.judge = judge.params
        self.start = lambda model: training.create_state(
            ppo.starting_params(config, model, judge), optimizer, device_mesh
        )
        self.rollout, self.update = ppo.compiled(
            config, model, judge, optimizer, device_mesh, self.start(model)[1]
        )

    def train(self, seed, score):
        """(state, mean scores of the iterations); `score` maps responses [B, R] to [B]."""
        model, config = self.models(seed), self.config
        state, _ = self.start(model)
        controls = Controls(np.float32(0), np.float32(1), np.float32(config.kl_coefficient))
        keys = jax.random.key_data(jax.random.split(jax.random.key(100 + seed), self.batch))
        tokens = np.tile(np.array(PROMPT, np.int32), (self.batch, 1))
        means = []
        for iteration in range(config.iterations):
            visits = np.full(self.batch, iteration, np.uint32)
            prompts = PromptBatch(tokens, np.ones_like(tokens), np.asarray(keys), visits)
            experience = self.rollout(state.params, model.params, self.judge, prompts)
            said = np.where(experience.response, experience.tokens[:, len(PROMPT) :], EOS)
            scores = np.asarray(score(said), np.float32)
            means.append(scores.mean())
            key = jax.random.fold_in(jax.random.key(seed), iteration)
            experience = experience._replace(scores=scores)
            state, _, metrics = self.update(state, experience, controls, key)
            # Of policy and reference, which are still the same.
            assert iteration or float(metrics["kl"]) == 0
        return state, np.array(means)

    def log_probability(self, params, responses):
        """[n] of whole responses [n, R], in which EOS fills what follows an end."""
        responses = np.asarray(responses)
        tokens = np.concatenate([np.tile(PROMPT, (len(responses), 1)), responses], axis=1)
        evaluate = ppo.make_evaluate(self.config, self.shape, self.shape)
        logprobs, _ = jax.jit(evaluate)(
            {"policy": params}, jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, jnp.int32)
        )
        before = np.cumsum(responses == EOS, axis=1) - (responses == EOS)
        return np.where(before == 0, logprobs, 0).sum(axis=1)


WORD, LENGTH, EPISODES = 6, 4, 4096


def test_counting_a_word_reaches_95_percent_of_the_optimum_for_every_seed():
    """The score counts a word: at most 4. Within 4,096 episodes, for 5 seeds of 5."""
    task = Task(
        batch=64,
        baseline="none",
        iterations=EPISODES // 64,
        max_new_tokens=LENGTH,
        kl_coefficient=0.0,
        learning_rate=1e-2,
        schedule="constant",
    )
    for seed in range(5):
        _, means = task.train(seed, lambda said: (said == WORD).sum(axis=1))
        assert means[0] < 0.4 * LENGTH
        assert means[-4:].mean() >= 0.95 * LENGTH, f"seed {seed}: {means[-4:]}"


def responses_of_two():
    """All 57 responses of at most two tokens: the end, or another token and any second one."""
    firsts = [token for token in range(VOCABULARY) if token != EOS]
    return np.array([(EOS, EOS)] + [(a, b) for a in firsts for b in range(VOCABULARY)])


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": "gae", "baseline": "none", "epochs": 4, "minibatches": 1},
        {"advantage": "leave_one_out"},
    ],
    ids=["gae_in_one_minibatch", "leave_one_out"],
)
def test_the_policy_becomes_the_kl_regularised_optimum(changes):
    """pi* = pi_ref exp(r / beta) / Z, to a total variation below 0.05."""
    beta = 1.0
    task = Task(
        batch=512,
        iterations=60,
        max_new_tokens=2,
        kl_coefficient=beta,
        learning_rate=1e-2,
        final=0.0,
        **changes,
    )
    space = responses_of_two()
    rewards = np.random.default_rng(0).normal(0, 1.5, (VOCABULARY, VOCABULARY))
    reference = task.log_probability(task.models(0).params, space)
    assert np.exp(reference).sum() == pytest.approx(1, abs=1e-5)

    def tilted(beta):
        logits = reference + rewards[space[:, 0], space[:, 1]] / beta
        return np.exp(logits - np.logaddexp.reduce(logits))

    optimum = tilted(beta)
    state, _ = task.train(0, lambda said: rewards[said[:, 0], said[:, 1]])
    policy = np.exp(task.log_probability(state.params["policy"], space))

    def variation(p):
        return 0.5 * np.abs(p - optimum).sum()

    # The reference is far, and so are the optima of penalties somewhat smaller and larger.
    assert variation(np.exp(reference)) > 0.4
    assert min(variation(tilted(0.8 * beta)), variation(tilted(1.25 * beta))) > 0.05
    assert variation(policy) < 0.05
