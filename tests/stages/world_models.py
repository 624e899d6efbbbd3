"""Tiny random models in the world's words, and records to train them on."""

import functools

from cai_jax.data.schema import Turn

WORDS = ("library", "teacher", "bike", "garden", "boss", "office", "camera", "station")


def write_model(folder, seed=0, *, preference_model=False):
    """A model folder of one layer, D = 16; a preference model's head is random."""
    import jax

    from cai_jax.models import transformer, weights
    from cai_jax.models.config import ModelConfig
    from cai_jax.sandbox.tokenizer import vocabulary, write_tokenizer

    vocab_size = -(-len(vocabulary()) // 8) * 8
    config = ModelConfig(
        vocab_size=vocab_size,
        width=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        hidden=16,
        max_positions=64,
    )

    @functools.partial(jax.jit, static_argnums=1)
    def init(key, preference_model):
        params = transformer.init_params(config, key)
        if preference_model:
            params = transformer.add_score_head(params, config, key)
        return params

    write_tokenizer(folder)
    weights.write_folder(folder, config, init(jax.random.key(seed), preference_model))
    return folder


def human(*texts):
    """A dialogue whose turns begin and end with the human's."""
    return tuple(Turn(("human", "assistant")[i % 2], text) for i, text in enumerate(texts))


def one_device(config, **changes):
    """A step's config with seed 0 and one device, changed."""
    config.seed = 0
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    with config.unlocked():
        config.update(changes)
    return config
