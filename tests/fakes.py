"""Small kinds of steps for the runner's tests: they write text, and need no model.

`python tests/fakes.py --config=...` is `python -m cai_jax.run` with these kinds.
"""

import os
import time
from types import SimpleNamespace

from ml_collections import ConfigDict

from cai_jax import run as runner
from cai_jax.errors import InputError
from cai_jax.stages import step

HANG_IN = "FAKES_HANG_IN"  # environment variable: the step that stops halfway until it is killed


def _revise_config():
    return ConfigDict(
        {"num_rounds": 4, "suffix": "!", "scale": 1.0, "optimizer": {"rate": 0.1}, "fail": ""}
    )


def _revise(config, inputs, folder):
    """Copies the lines of `prompts` num_rounds times, each with seed and suffix."""
    if config.fail:
        raise InputError(config.fail)
    source = inputs["prompts"]
    lines = (source / "text.txt" if source.is_dir() else source).read_text().splitlines()
    written = 0
    with open(folder / "text.txt", "w") as file:
        for i, line in enumerate(lines):
            if os.environ.get(HANG_IN) == folder.name and i == len(lines) // 2:
                file.flush()
                (folder / "halfway").touch()
                time.sleep(120)
            for number in range(config.num_rounds):
                file.write(f"{config.seed} {number} {line}{config.suffix}\n")
                written += 1
    return {"records": written, "tokens": 3 * written}


def _plan_revise(config, planned):
    records = planned["prompts"]["records"]
    tokens = 100 * records * config.num_rounds
    return {
        "records": records,
        "tokens": tokens,
        "flops": 2.0 * tokens,
        "revisions": records * config.num_rounds,
    }


def _count(config, inputs, folder):
    (folder / "count.txt").write_text(
        "".join(f"{len(path.read_bytes())}\n" for path in inputs["texts"])
    )
    return {"records": len(inputs["texts"]), "tokens": 0}


def _train(config, inputs, folder):
    """Keeps a model after every `snapshot_every` of its iterations; number `diverge` goes wrong."""
    for iteration in range(1, config.iterations + 1):
        if iteration == config.diverge:
            raise FloatingPointError(f"{folder.name}: iteration {iteration}: loss is nan")
        if iteration % config.snapshot_every == 0:
            (folder / "snapshots" / f"step-{iteration:04d}").mkdir(parents=True)
    return {"records": config.iterations, "tokens": 0}


def _use(config, inputs, folder):
    (folder / "read.txt").write_text(str(inputs["models"]["early"]))
    return {"records": 1, "tokens": 0}


def _plan_nothing(config, planned):
    return {"records": 1, "tokens": 0, "flops": 0.0}


KINDS = {
    "train": SimpleNamespace(
        default_config=lambda: ConfigDict({"iterations": 4, "snapshot_every": 2, "diverge": 0}),
        run=_train,
        plan=_plan_nothing,
    ),
    "use": SimpleNamespace(default_config=ConfigDict, run=_use, plan=_plan_nothing),
    "revise": SimpleNamespace(default_config=_revise_config, run=_revise, plan=_plan_revise),
    "count": SimpleNamespace(
        default_config=ConfigDict,
        run=_count,
        plan=lambda config, planned: {"records": 1, "tokens": 0, "flops": 0.0},
    ),
}


def load(kind):
    if kind not in KINDS:
        raise InputError(f"unknown step kind {kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[kind]


def fake_step(kind, inputs, **parameters):
    return step(kind, inputs, load=load, **parameters)


if __name__ == "__main__":
    runner.main(load_stage=load)
