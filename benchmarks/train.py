"""Training steps beside a plain torch loop: the same weights, the same batches, in one run.

    python benchmarks/train.py [--shape=28m] [--batch=8] [--length=256] [--prompt=192] [--rounds=5]

prints one JSON object. `finetune`: a language model on packed rows; torch runs `transformers` with
AdamW and clipping. `preference`: comparisons that share a prompt; torch scores both texts of a pair
in rows of their own, ours once so and once with shared prompts. Each round times every contestant
in turn, so that a machine that slows down slows all; seconds are medians over rounds, without the
first, which compiles. `losses` of all contestants must agree, or the times mean nothing.

MFU is 6 FLOPs a parameter and token (and 12 L N H T / 2 a token for causal attention), over the
peak of a large float32 matrix product that is measured in the same run. A machine that does
something else besides gives no number worth keeping.

Measured on two CPU cores (206 GFLOP/s), shape 28m, 4 rounds, updates against torch's: finetune 0.88
times as fast (688 tokens/s, MFU 58 %), preference 0.87 times, with shared prompts 1.40 times. The
tokens of a shared prompt count twice, as torch computes them, so its MFU may pass 100 %.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {"vocab_size": 256, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64},
    "28m": {
        "vocab_size": 8192, "width": 512, "layers": 8, "heads": 8, "kv_heads": 4, "hidden": 1408,
    },
}  # fmt: skip
LEARNING_RATE = 1e-4

Step = Callable[[int], float]  # runs update number i, and returns its loss


def main() -> None:
    """Runs the benchmark."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    flags.add_argument("--shape", default="28m", choices=SHAPES)
    flags.add_argument("--batch", type=int, default=8, help="rows, or comparisons")
    flags.add_argument("--length", type=int, default=256, help="tokens in a row, or a text")
    flags.add_argument("--prompt", type=int, default=192, help="tokens of a text that are shared")
    flags.add_argument("--rounds", type=int, default=5)
    args = flags.parse_args()
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from cai_jax.models.config import ModelConfig

    shape = SHAPES[args.shape]
    config = ModelConfig(**shape, head_dim=shape["width"] // shape["heads"])
    rng = np.random.default_rng(0)
    draw = lambda *size: rng.integers(3, config.vocab_size, size)  # noqa: E731
    rows = draw(args.rounds, args.batch, args.length)
    texts = draw(args.rounds, args.batch, 2, args.length)
    texts[..., : args.prompt] = texts[:, :, :1, : args.prompt]
    labels = rng.uniform(size=(args.rounds, args.batch)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, config)
        peak = matmul_peak()
        report: dict[str, Any] = {"peak_gflops": peak / 1e9, **vars(args)}
        tokens = args.batch * args.length
        report["finetune"] = compare(
            {"torch": torch_finetune(folder, rows), "ours": our_finetune(folder, rows)},
            args.rounds,
            tokens,
            flops(config, tokens, args.length, unembeds=True) / peak,
        )
        pairs = (texts, labels)
        report["preference"] = compare(
            {
                "torch": torch_preference(folder, *pairs),
                "ours": our_preference(folder, *pairs, args.prompt, shared=False),
                "ours_shared": our_preference(folder, *pairs, args.prompt, shared=True),
            },
            args.rounds,
            2 * tokens,
            flops(config, 2 * tokens, args.length, unembeds=False) / peak,
        )
    print(json.dumps(report, indent=2))


def compare(
    contestants: dict[str, Step], rounds: int, tokens: int, least_seconds: float
) -> dict[str, Any]:
    """Times every contestant in every round; `tokens` are those of the texts, shared or not."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, step in contestants.items():
            start = time.perf_counter()
            losses[name].append(round(step(number), 5))
            seconds[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {}
    for name, of in seconds.items():
        median = statistics.median(of[1:] or of)
        found[name] = {
            "step_seconds": round(median, 4),
            "tokens_per_second": round(tokens / median, 1),
            "mfu": round(least_seconds / median, 3),
            "first_seconds": round(of[0], 2),
            "losses": losses[name],
        }
    against = found["torch"]["step_seconds"]
    for name in found:
        found[name]["times_torch"] = round(against / found[name]["step_seconds"], 2)
    return found


def flops(config: Any, tokens: int, length: int, *, unembeds: bool) -> float:
    """Floating-point operations of forward and backward passes, without recomputation."""
    c = config
    of_layer = 2 * c.width * c.head_dim * (c.heads + c.kv_heads) + 3 * c.width * c.hidden
    matrices = c.layers * of_layer + unembeds * c.vocab_size * c.width
    attention = 12 * c.layers * c.heads * c.head_dim * length / 2
    return tokens * (6 * matrices + attention)


def matmul_peak(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a large float32 product, the best of several."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size))
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def write_model(folder: Path, config: Any) -> None:
    """A random model, from which all contestants start."""
    import jax

    from cai_jax.models import transformer, weights

    params = jax.jit(lambda key: transformer.init_params(config, key))(jax.random.key(0))
    ids = {"bos": None, "eos": 1, "pad": 0}
    weights.write_folder(folder, config, params, ids)


def settings(stage: Any) -> Any:
    """A stage's config with the optimizer that torch has too."""
    config = stage.default_config()
    config.update({"schedule": "constant", "warmup": 0.0, "learning_rate": LEARNING_RATE})
    config.update({"beta2": 0.999, "weight_decay": 0.01, "clip_norm": 1.0})
    return config


def our_update(stage: Any, folder: Path, *, preference_model: bool) -> Any:
    """update(batch) -> metrics, as the stage makes it, from the folder's parameters."""
    import jax

    from cai_jax.core import mesh, optimizer, training
    from cai_jax.models import transformer, weights

    config = settings(stage)
    model_config, params = weights.read_folder(folder)
    if preference_model:
        params = transformer.add_score_head(params, model_config)
    made = optimizer.make_optimizer(config, 1)
    state, _ = training.create_state(params, made, mesh.make_mesh(mesh.default_config()))
    step = jax.jit(stage.make_step(model_config, made, config), donate_argnums=0)

    def update(batch):
        nonlocal state
        state, metrics = step(state, None, batch)
        return jax.device_get(metrics)

    return update


def our_finetune(folder: Path, rows: Any) -> Step:
    """The finetune stage's update on rows of one document each."""
    import numpy as np

    from cai_jax.data import packing
    from cai_jax.data.examples import Example
    from cai_jax.stages import finetune

    update = our_update(finetune, folder, preference_model=False)
    length = rows.shape[-1]

    def step(number: int) -> float:
        examples = [Example("", row, np.ones(length, np.float32)) for row in rows[number]]
        indices = [[i] for i in range(len(examples))]
        metrics = update(packing.fill(examples, indices, len(examples), length))
        return float(metrics["loss_sum"] / metrics["weight"])

    return step


def our_preference(folder: Path, texts: Any, labels: Any, prompt: int, *, shared: bool) -> Step:
    """The preference stage's update, on rows of texts or of comparisons."""
    from cai_jax.data import comparisons
    from cai_jax.stages import preference

    update = our_update(preference, folder, preference_model=True)
    length = texts.shape[-1]

    def step(number: int) -> float:
        pairs = [
            comparisons.TokenPair("", a.tolist(), b.tolist(), float(p), shared=prompt)
            for (a, b), p in zip(texts[number], labels[number])
        ]
        if shared:
            batch: Any = comparisons.fill_shared(pairs, len(pairs), 2 * length - prompt)
        else:
            batch = comparisons.fill_pairs(pairs, len(pairs), length)
        metrics = update(batch)
        return float(metrics["loss"] / metrics["weight"])

    return step


def torch_update(model: Any) -> Any:
    """update(loss) for torch: backward, clip, AdamW without decay on the norms' scales."""
    import torch

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999))

    def update(loss: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return update


def torch_finetune(folder: Path, rows: Any) -> Step:
    """The loop that a torch user writes."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    update = torch_update(model)

    def step(number: int) -> float:
        ids = torch.from_numpy(rows[number])
        return update(model(input_ids=ids, labels=ids, use_cache=False).loss)

    return step


def torch_preference(folder: Path, texts: Any, labels: Any) -> Step:
    """Both texts of every pair in one batch, and the log-loss of the soft label."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.zeros_(model.score.weight)
    model.train()
    update = torch_update(model)

    def step(number: int) -> float:
        ids = torch.from_numpy(texts[number])
        scores = model(input_ids=ids.flatten(0, 1), use_cache=False).logits.reshape(-1, 2)
        return update(
            torch.nn.functional.binary_cross_entropy_with_logits(
                scores[:, 0] - scores[:, 1], torch.from_numpy(labels[number])
            )
        )

    return step


if __name__ == "__main__":
    main()
