"""A step that samples, one that trains and one that reads, with nothing of a model's cost: they go
through what the real ones go through when they are interrupted, and take tenths of a second."""

import functools
import time
from collections import Counter
from types import SimpleNamespace

import forking
from ml_collections import ConfigDict

from cai_jax.core import training_checkpoints
from cai_jax.core.blocks import kept
from cai_jax.core.metrics import MetricsWriter
from cai_jax.data.schema import Demonstration, Prompt, Turn, read_records, write_file, write_records
from cai_jax.stages import step

PAUSE = 0.01  # seconds: of a record, and of an update


def _sample(config, inputs, folder):
    prompts = read_records(inputs["prompts"], Prompt)
    counts = Counter(tokens=0)

    def make(part):
        for prompt in part:
            time.sleep(PAUSE)
            counts["tokens"] += len(prompt.id)
            yield Demonstration(prompt.id, prompt.dialogue, f"answer to {prompt.id}")

    records = []
    for number, first in enumerate(range(0, len(prompts), config.block)):
        part = prompts[first : first + config.block]
        read = functools.partial(read_records, record_type=Demonstration)
        records += kept(folder, number, counts, functools.partial(make, part), write_file, read)
    write_records(folder / "demonstrations.jsonl", records)
    return {"records": len(records), **counts}


def _train(config, inputs, folder):
    import jax
    import jax.numpy as jnp

    from cai_jax.core import checkpoint

    rows = len(read_records(inputs["data"] / "demonstrations.jsonl", Demonstration))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, number):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        return state + jax.random.normal(key, state.shape)

    total = 0.0
    with (
        training_checkpoints.TrainingCheckpoints(folder, config.checkpoints, "base") as saves,
        MetricsWriter(folder) as writer,
    ):
        state, at = saves.restored(jnp.zeros(1000), {"number": 0, "total": 0.0})
        total = at["total"]
        for number in range(at["number"] + 1, config.updates + 1):
            time.sleep(PAUSE)
            state = update(state, number)
            total += float(state[0]) / 3
            writer.write(number, total=total)
            if saves.due(number):
                saves.save(number, state, {"number": number, "total": total})
    checkpoint.save(folder / "params", {"kernel": state})
    (folder / "bits.txt").write_text(bytes(jax.device_get(state)).hex())
    return {"records": rows, "tokens": config.updates, "total": total}


def _read(config, inputs, folder):
    lines = (inputs["data"] / "bits.txt").read_text()
    (folder / "page.txt").write_text(lines[:99] + "\n")
    return {"records": 1, "tokens": 0}


def _plan(config, planned):
    return {"records": 1, "tokens": 0, "flops": 0.0}


KINDS = {
    "sample": SimpleNamespace(
        default_config=lambda: ConfigDict({"block": 4}), run=_sample, plan=_plan
    ),
    "train": SimpleNamespace(
        default_config=lambda: ConfigDict(
            {"updates": 40, "checkpoints": training_checkpoints.default_config(every=5)}
        ),
        run=_train,
        plan=_plan,
    ),
    "read": SimpleNamespace(default_config=ConfigDict, run=_read, plan=_plan),
}


def get_config():
    """Four steps, of which each reads the one before."""
    config = ConfigDict(sort_keys=False)
    config.seed = 3
    config.steps = ConfigDict(sort_keys=False)
    make = functools.partial(step, load=KINDS.__getitem__)
    config.steps.sampled = make("sample", {"prompts": "prompts.jsonl"})
    config.steps.trained = make("train", {"data": "sampled"})
    config.steps.trained_more = make("train", {"data": "sampled"}, updates=25)
    config.steps.page = make("read", {"data": "trained"})
    return config


def write_prompts(path):
    """As many as make half a second."""
    dialogue = (Turn("human", "?"),)
    write_records(path, [Prompt(f"p{number}", dialogue) for number in range(40)])


if __name__ == "__main__":
    forking.main(KINDS.__getitem__)
