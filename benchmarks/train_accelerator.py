"""Training on an accelerator, as a share of its peak: a Llama of 1B or 3B in bfloat16.

    python benchmarks/train_accelerator.py [--parts=finetune,preference,ppo] [--shape=1b] ...

prints one JSON object a variant, as soon as it is measured:

- `attention`: the platform's kernel beside the plain path in float32, on packed documents: the
  error of its values and gradients, relative to the norm of the plain one's.
- `finetune`: the stage's update of rows of T = 2048, with `--documents` in each.
- `preference`: that of pairs, a text a row; then with three quarters of their tokens in common, of
  which those of a shared prompt count twice, as others compute them.
- `ppo`: one update of the ppo stage, beside the sum of its parts: the gradients of each minibatch
  (policy and value model, each a program of its own) and what the optimizer does with them.

MFU counts 6 FLOPs a parameter and token, and half of the attention's square as if a row were one
document, over the maker's dense bfloat16 peak (--peak). Parameters, gradients and Adam's moments
are float32. Weights and tokens are random: nothing here says what a model writes.

Measured on one H200 (989 TFLOP/s), jax 0.11.2, T = 2048, with the flags of launch/env.sh:

    finetune 1b, 8 rows of one document     .248 s  66,200 tokens/s  MFU .523   50 GB
    finetune 1b, 8 rows of four documents   .256 s  64,000 tokens/s  MFU .506   50 GB
    finetune 3b, 4 rows of one document     .327 s  25,000 tokens/s  MFU .514   72 GB
    preference 1b, 4 pairs, a text a row    .194 s  84,600 tokens/s  MFU .534   42 GB
    preference 1b, 4 pairs, shared prompts  .206 s  79,700 tokens/s  MFU .503   86 GB
    ppo 1b, 16 responses, 2 epochs of 4 minibatches, --rows=4 --remat=dots: 2.16 s, 1.02 times the
    sum of its parts (policy 1.02 s, value model .93, optimizer .17)

What made the difference: layers one by one, not in a loop (finetune with four documents .439
before, at 70 GB; the first update takes 16 s, in a loop 12; there remat "dots" was faster, .476),
and no mask where a row has one document, which cuDNN reads as a bias [B, 1, T, T] (in a loop with
"dots" .500 for .476). Of four documents attention is counted that none of them needs, since the
kernel computes it: without that .487.
A shared prompt does not pay here: its masks are no kernel's, and the plain path writes all weights.
Of PPO the update alone was measured; its layers are in a loop (`stages/ppo.py`, `in_a_loop`), and
cuDNN was still given masks then.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]
LLAMA = {"rope_theta": 500_000.0, "dtype": "bfloat16", "max_positions": 8192}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "width": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    | {"head_dim": 32, "hidden": 256, "tied_embeddings": True},
    "1b": {"vocab_size": 128_256, "width": 2048, "layers": 16, "heads": 32, "kv_heads": 8}
    | {"head_dim": 64, "hidden": 8192, "tied_embeddings": True},
    "3b": {"vocab_size": 128_256, "width": 3072, "layers": 28, "heads": 24, "kv_heads": 8}
    | {"head_dim": 128, "hidden": 8192, "tied_embeddings": True},
    "8b": {"vocab_size": 128_256, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 8}
    | {"head_dim": 128, "hidden": 14_336, "tied_embeddings": False},
}
PARTS = "attention,finetune,preference,ppo"


def main() -> None:
    """Runs the parts."""
    flags = parser(__doc__)
    flags.add_argument("--parts", default=PARTS)
    flags.add_argument("--remat", default="none", help="none, dots or layer")
    flags.add_argument("--unroll", type=int, default=0, help="layers a turn of the loop over them")
    flags.add_argument("--rows", type=int, default=8, help="of an update")
    flags.add_argument("--documents", type=int, default=4, help="in a row of finetuning")
    flags.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    run_parts(flags.parse_args(), globals())


def parser(about: str) -> argparse.ArgumentParser:
    """The flags that training and generation have in common."""
    flags = argparse.ArgumentParser(description=about.split("\n", maxsplit=1)[0])
    flags.add_argument("--shape", default="1b", choices=SHAPES)
    flags.add_argument("--attention", default="", help="of the model: plain, cudnn, splash")
    flags.add_argument("--length", type=int, default=2048, help="tokens of a row, or a prompt")
    flags.add_argument("--peak", type=float, default=989e12, help="FLOP/s of the device")
    return flags


def run_parts(args: argparse.Namespace, functions: dict[str, Any]) -> None:
    """Prints what the asked parts find."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from cai_jax.models.config import ModelConfig

    config = ModelConfig(**SHAPES[args.shape], **LLAMA, attention=args.attention)
    for part in args.parts.split(","):
        for found in functions[part](args, config):
            print(json.dumps({"part": part, "shape": args.shape} | found), flush=True)


def timed(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """(the median of the seconds of a run, those of the first one, which compiles)."""
    import jax

    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), seconds[0]


def peak_memory() -> dict[str, float]:
    """Of the process until now, where the device says."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_gb": round(stats.get("peak_bytes_in_use", 0) / 1e9, 1)}


def random_params(config: Any, dtype: str = "float32") -> Any:
    """Made on the device."""
    import jax

    from cai_jax.models import transformer

    def make(key):
        params = transformer.init_params(config, key)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    return jax.jit(make)(jax.random.key(0))


def attention(args: argparse.Namespace, config: Any) -> Any:
    """The kernel's values and gradients beside the plain path's."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cai_jax.models import transformer

    small = dataclasses.replace(config, layers=1, vocab_size=256)
    params = random_params(small)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 256, (2, args.length)))
    positions, segments = documents(2, args.length, args.documents)
    aim = jnp.asarray(rng.normal(size=(2, args.length, config.width)), jnp.float32)

    def measured(config):
        def loss(params):
            hidden, _ = transformer.forward(
                params, config, tokens, positions=positions, segments=segments
            )
            return jnp.sum(hidden.astype(jnp.float32) * aim), hidden

        gradients, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
        of_attention = jax.tree.leaves(gradients["layers"]["attention"])
        return [np.asarray(x, np.float64) for x in (hidden, *of_attention)]

    exact = measured(dataclasses.replace(small, dtype="float32", attention="plain"))
    for kernel in ("plain", config.attention):
        found = measured(dataclasses.replace(small, attention=kernel))
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact)]
        worst = {"values": round(errors[0], 5), "gradients": round(max(errors[1:]), 5)}
        yield {"kernel": kernel or "of the platform"} | worst


def documents(rows: int, length: int, count: int) -> tuple[Any, Any]:
    """(positions, segments) [rows, length] of rows of so many documents."""
    import numpy as np

    where = np.arange(length)
    each = -(-length // count)
    return np.tile(where % each, (rows, 1)), np.tile(where // each + 1, (rows, 1))


def updates(args: argparse.Namespace, stage: Any, config: Any, params: Any, batch: Any) -> Any:
    """() -> metrics of an update of the stage."""
    import jax
    from train import settings

    from cai_jax.core import mesh, optimizer, training

    chosen = settings(stage)
    chosen.remat = args.remat
    config = dataclasses.replace(config, remat=args.remat, scan_unroll=args.unroll)
    made = optimizer.make_optimizer(chosen, 1)
    device_mesh = mesh.make_mesh(mesh.default_config())
    state, shardings = training.create_state(params, made, device_mesh)
    step = training.compiled_update(
        stage.make_step(config, made, chosen), device_mesh, shardings, None
    )
    batch = jax.device_put(batch)

    def update():
        nonlocal state
        state, metrics = step(state, None, batch)
        return metrics

    return update


def finetune(args: argparse.Namespace, config: Any) -> Any:
    """Updates of packed rows."""
    import numpy as np
    from train import flops

    from cai_jax.data.packing import Rows
    from cai_jax.stages import finetune as stage

    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, config.vocab_size, (2, args.rows, args.length), np.int32)
    positions, segments = documents(args.rows, args.length, args.documents)
    batch = Rows(
        tokens=tokens,
        targets=targets,
        weights=np.ones(tokens.shape, np.float32),
        positions=positions.astype(np.int32),
        segments=segments.astype(np.int32),
    )
    update = updates(args, stage, config, random_params(config), batch)
    seconds, first = timed(update, args.rounds)
    # As if a row were one document, which is what the kernels compute.
    needed = flops(config, tokens.size, args.length, unembeds=True)
    yield {"rows": args.rows, "length": args.length, "documents": args.documents} | of_update(
        args, seconds, first, tokens.size, needed
    )


def of_update(
    args: argparse.Namespace, seconds: float, first: float, tokens: int, needed: float
) -> dict[str, Any]:
    """What is said of an update that takes so long."""
    return {
        "remat": args.remat,
        "unroll": args.unroll,
        "step_seconds": round(seconds, 4),
        "first_seconds": round(first, 1),
        "tokens_per_second": round(tokens / seconds),
        "mfu": round(needed / seconds / args.peak, 3),
        **peak_memory(),
    }


def preference(args: argparse.Namespace, config: Any) -> Any:
    """Updates of comparisons: a text a row, then with shared prompts."""
    import jax
    import numpy as np
    from train import flops

    from cai_jax.data import comparisons
    from cai_jax.models import transformer
    from cai_jax.stages import preference as stage

    rng = np.random.default_rng(0)
    pairs, prompt = args.rows // 2, args.length * 3 // 4
    texts = rng.integers(3, config.vocab_size, (pairs, 2, args.length))
    texts[..., :prompt] = texts[:, :1, :prompt]
    made = [comparisons.TokenPair("", a.tolist(), b.tolist(), 1.0, shared=prompt) for a, b in texts]
    batches = {
        "rows": comparisons.fill_pairs(made, pairs, args.length),
        "shared": comparisons.fill_shared(made, pairs, 2 * args.length - prompt),
    }
    needed = flops(config, texts.size, args.length, unembeds=False)
    for name, batch in batches.items():
        params = transformer.add_score_head(random_params(config), config)
        update = updates(args, stage, config, params, batch)
        seconds, first = timed(update, args.rounds)
        yield {"texts": name, "pairs": pairs} | of_update(args, seconds, first, texts.size, needed)
        del params, update
        jax.clear_caches()


def ppo(args: argparse.Namespace, config: Any) -> Any:
    """An update beside its parts, alone."""

    import jax
    import jax.numpy as jnp
    import numpy as np
    from train import settings

    from cai_jax.algorithms import ppo as algorithm
    from cai_jax.core import mesh, optimizer, training
    from cai_jax.models import transformer
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.stages import ppo as stage

    epochs, minibatches, half = 2, 4, args.length // 2
    responses = minibatches * args.rows
    chosen = settings(stage)
    chosen.update({"samples_per_prompt": 1, "baseline": "none", "value_model": "preference_model"})
    chosen.update({"epochs": epochs, "minibatches": minibatches, "max_new_tokens": half})
    chosen.update({"score_normalization": "none", "remat": args.remat, "kl_stop": 0.0})
    params = random_params(config)
    tokenizer: Any = SimpleNamespace(eos_id=1)
    policy = LanguageModel(config, params, tokenizer)
    scored = LanguageModel(config, transformer.add_score_head(params, config), tokenizer)
    device_mesh = mesh.make_mesh(mesh.default_config())
    made = optimizer.make_optimizer(chosen, 1)
    # Copied, since what is donated must not be the same arrays twice.
    copied = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    started = copied(stage.starting_params(chosen, policy, scored))
    state, shardings = training.create_state(started, made, device_mesh)
    _, update = stage.compiled(chosen, policy, scored, made, device_mesh, shardings)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.vocab_size, (responses, args.length), np.int32)
    zeros = np.zeros((responses, half), np.float32)

    def noise(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    experience = algorithm.Experience(
        tokens=tokens,
        mask=np.ones_like(tokens),
        response=np.ones((responses, half), bool),
        ref_logprobs=zeros - 12,
        last_values=zeros[:, 0],
        scores=noise(responses),
        ended=np.ones(responses, bool),
        logprobs=zeros - 12,
        values=noise(responses, half),
    )
    experience = jax.device_put(experience)
    controls = algorithm.Controls(*map(np.float32, (0, 1, 0.1)))

    def whole():
        nonlocal state
        state, _, metrics = update(state, experience, controls, jax.random.key(0))
        return metrics

    seconds, first = timed(whole, args.rounds)
    memory = peak_memory()
    # As the update has it, layers in a loop where that has them.
    looped = stage.in_a_loop(dataclasses.replace(config, remat=args.remat))
    evaluate = stage.make_evaluate(chosen, looped, looped)
    part = jax.device_put((tokens[: args.rows], np.ones_like(tokens[: args.rows])))
    aims = jax.device_put((noise(args.rows, half), noise(args.rows, half)))

    def gradient(role):
        def loss(trained, others, part, aims):
            outputs = evaluate({**others, **trained}, *part)
            which = 0 if role == "policy" else 1
            return jnp.sum(outputs[which] * aims[which])

        return jax.jit(jax.grad(loss))

    sums: dict[str, float] = {}
    gradients = {}
    for role in state.params:
        of_role = gradient(role)
        trained = {role: state.params[role]}
        others = {name: tree for name, tree in state.params.items() if name != role}
        run = functools.partial(of_role, trained, others, part, aims)
        sums[role] = timed(run, args.rounds)[0] * epochs * minibatches
        gradients |= run()
    apply = jax.jit(
        lambda state, gradients: training.apply_gradients(state, gradients, made),
        donate_argnums=0,
    )

    def applied():
        nonlocal state
        state = apply(state, gradients)
        return state.step

    sums["optimizer"] = timed(applied, args.rounds)[0] * epochs * minibatches
    yield {
        "responses": responses,
        "length": args.length,
        "epochs": epochs,
        "minibatches": minibatches,
        "update_seconds": round(seconds, 3),
        "first_seconds": round(first, 1),
        "parts_seconds": {name: round(of, 3) for name, of in sums.items()},
        "over_parts": round(seconds / sum(sums.values()), 3),
        **memory,
    }


if __name__ == "__main__":
    main()
