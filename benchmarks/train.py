"""Training steps beside torch and TRL: the same weights, the same batches, in one run.

    python benchmarks/train.py [--trl=PYTHON_1_16] [--trl_ppo=PYTHON_1_12] [--parts=finetune,...]

prints one JSON object. `finetune`: a language model on packed rows; torch runs `transformers` with
AdamW and clipping. `preference`: comparisons that share a prompt; torch and TRL score both texts of
a pair in rows of their own, ours once so and once with shared prompts. `ppo`: sampling, scoring and
4 epochs of updates, ours once as TRL does it, with a value model of its own, and once with a value
head on the policy's trunk. TRL runs in environments of its own (`--trl`: with TRL 1.16;
`--trl_ppo`: 1.12, the last with PPO), once told to keep activations, and once as it is by default,
where it computes them again in the backward pass.

Each round times every contestant in turn, so that a machine that slows down slows all; seconds are
medians over rounds, without the first, which compiles. `losses` of all contestants must agree, or
the times mean nothing; those of PPO, which samples, are not compared.

MFU is 6 FLOPs a parameter and token (and 12 L N H T / 2 a token for causal attention), over the
peak of a large float32 matrix product that is measured in the same run. A machine that does
something else besides gives no number worth keeping. Before it starts, the process tells glibc to
keep the memory it has, as the Makefile does: XLA loses up to 40 % to page faults otherwise.

Measured on two CPU cores (191 GFLOP/s), shape 28m, 5 rounds: finetune 869 tokens/s (MFU 79 %), 1.00
times torch (865; in an earlier run torch took 1.6 times as long), 1.51 times TRL as it is,
1.15 times TRL that keeps activations. Preference with shared prompts 1,171 tokens/s, 1.18 times
torch, 1.52 and 1.15 times TRL; one text a row 0.99, 1.27 and 0.97; the tokens of a shared prompt
count twice, as torch computes them. PPO, in a run of its own: with a value model
0.98 episodes a second, 1.36 times TRL that keeps activations and 1.31 times TRL as it is; with a
head 1.59, 2.21 and 2.12 times. Of an iteration of 16.6 s 14 are the update, whose products run at
190 to 205 GFLOP/s. Five rounds are needed: the second iteration, too, is slower than those that
follow, as it takes the memory that they keep (with 3 rounds 1.27). Peak memory of a process with
one contestant: finetune 2.0 GB (torch 2.2), preference with shared prompts 2.2 (torch 2.9), PPO
3.6.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
SHAPES = {
    "tiny": {"vocab_size": 256, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64},
    "28m": {
        "vocab_size": 8192, "width": 512, "layers": 8, "heads": 8, "kv_heads": 4, "hidden": 1408,
    },
}  # fmt: skip
LEARNING_RATE = 1e-4
EPOCHS = 4  # of PPO
EOS = 1
KEEPING_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}

Step = Callable[[int], float]  # runs update number i, and returns its loss


def main() -> None:
    """Runs the benchmark."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    flags.add_argument("--shape", default="28m", choices=SHAPES)
    flags.add_argument("--parts", default="finetune,preference,ppo", help="which to run")
    flags.add_argument("--batch", type=int, default=8, help="rows, or comparisons")
    flags.add_argument("--length", type=int, default=256, help="tokens in a row, or a text")
    flags.add_argument("--prompt", type=int, default=192, help="tokens of a text that are shared")
    flags.add_argument("--episodes", type=int, default=16, help="in an iteration of PPO")
    flags.add_argument("--half", type=int, default=64, help="tokens of its prompts, and responses")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--trl", help="a Python with TRL 1.16")
    flags.add_argument("--trl_ppo", help="a Python with TRL 1.12")
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
    prompts = draw(args.rounds, args.episodes, args.half)
    parts = args.parts.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "batches.npz"
        write_model(folder, config)
        np.savez(data, rows=rows, texts=texts, prompts=prompts, epochs=EPOCHS, responses=args.half)
        peak = matmul_peak()
        report: dict[str, Any] = {"peak_gflops": peak / 1e9, **vars(args)}
        tokens = args.batch * args.length
        if "finetune" in parts:
            steps = {"torch": torch_finetune(folder, rows), "ours": our_finetune(folder, rows)}
            for task in ("sft", "sft_default") if args.trl else ():
                steps[f"trl_{task}"] = trl(args.trl, task, folder, data)
            least = flops(config, tokens, args.length, unembeds=True) / peak
            report["finetune"] = compare(steps, args.rounds, tokens, least)
        if "preference" in parts:
            steps = {
                "torch": torch_preference(folder, texts),
                "ours": our_preference(folder, texts, args.prompt, shared=False),
                "ours_shared": our_preference(folder, texts, args.prompt, shared=True),
            }
            for task in ("reward", "reward_default") if args.trl else ():
                steps[f"trl_{task}"] = trl(args.trl, task, folder, data)
            least = flops(config, 2 * tokens, args.length, unembeds=False) / peak
            report["preference"] = compare(steps, args.rounds, 2 * tokens, least)
        if "ppo" in parts:
            steps = {
                "ours": our_ppo(folder, prompts, args.half, value_model="preference_model"),
                "ours_on_trunk": our_ppo(folder, prompts, args.half, value_model="policy_trunk"),
            }
            for task in ("ppo", "ppo_default") if args.trl_ppo else ():
                steps[f"trl_{task}"] = trl(args.trl_ppo, task, folder, data)
            report["ppo"] = compare(steps, args.rounds, args.episodes, None)
    print(json.dumps(report, indent=2))


def compare(
    contestants: dict[str, Step], rounds: int, units: int, least_seconds: float | None
) -> dict[str, Any]:
    """Times every contestant in every round.

    Args:
        contestants: the steps by name.
        rounds: updates of each.
        units: tokens of an update (those of the texts, shared or not), or episodes.
        least_seconds: of an update at the matrix product's peak, if that is counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, step in contestants.items():
            start = time.perf_counter()
            losses[name].append(round(step(number), 4))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(of[1:] or of) for name, of in seconds.items()}
    found: dict[str, Any] = {}
    for name, median in medians.items():
        found[name] = {
            "step_seconds": round(median, 4),
            "units_per_second": round(units / median, 2),
            "first_seconds": round(seconds[name][0], 2),
            "losses": losses[name],
            "as_fast_as": {
                other: round(medians[other] / median, 2) for other in medians if other != name
            },
        }
        if least_seconds is not None:
            found[name]["mfu"] = round(least_seconds / median, 3)
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
    ids = {"bos": None, "eos": EOS, "pad": 0}
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


def our_preference(folder: Path, texts: Any, prompt: int, *, shared: bool) -> Step:
    """The preference stage's update, on rows of texts or of comparisons."""
    from cai_jax.data import comparisons
    from cai_jax.stages import preference

    update = our_update(preference, folder, preference_model=True)
    length = texts.shape[-1]

    def step(number: int) -> float:
        pairs = [
            comparisons.TokenPair("", a.tolist(), b.tolist(), 1.0, shared=prompt)
            for a, b in texts[number]
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


def torch_preference(folder: Path, texts: Any) -> Step:
    """Both texts of every pair in one batch; the first is the better, since TRL has hard labels."""
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
        return update(-torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean())

    return step


def our_ppo(folder: Path, prompts: Any, length: int, *, value_model: str) -> Step:
    """An iteration of the ppo stage, with TRL's algorithm: one response a prompt, one minibatch."""
    import jax
    import numpy as np

    from cai_jax.algorithms.ppo import Controls
    from cai_jax.core import mesh, optimizer, training
    from cai_jax.data.prompt_batches import PromptBatch
    from cai_jax.models import transformer, weights
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.stages import ppo

    config = settings(ppo)
    config.update({"samples_per_prompt": 1, "baseline": "none", "value_model": value_model})
    config.update({"epochs": EPOCHS, "minibatches": 1, "max_new_tokens": length})
    config.update({"score_normalization": "none", "missing_eos_penalty": 0.0})
    model_config, params = weights.read_folder(folder)
    tokenizer: Any = SimpleNamespace(eos_id=EOS)
    policy = LanguageModel(model_config, params, tokenizer)
    scored = LanguageModel(
        model_config, transformer.add_score_head(params, model_config), tokenizer
    )
    device_mesh = mesh.make_mesh(mesh.default_config())
    made = optimizer.make_optimizer(config, 1)
    started = jax.tree.map(np.copy, ppo.starting_params(config, policy, scored))
    state, shardings = training.create_state(started, made, device_mesh)
    rollout, update = ppo.compiled(config, policy, scored, made, device_mesh, shardings)
    keys = jax.random.split(jax.random.key(0), prompts.shape[1])
    bits = np.asarray(jax.random.key_data(keys))
    controls = Controls(np.float32(0), np.float32(1), np.float32(config.kl_coefficient))

    def step(number: int) -> float:
        nonlocal state
        ids = prompts[number].astype(np.int32)
        visits = np.full(len(ids), number, np.uint32)
        batch = PromptBatch(ids, np.ones_like(ids), bits, visits)
        experience = rollout(state.params, policy.params, scored.params, batch)
        state, _, metrics = update(state, experience, controls, jax.random.key(number))
        return float(jax.device_get(metrics)["kl"])

    return step


def trl(python: str, task: str, folder: Path, data: Path) -> Step:
    """TRL in a process of its own, which waits for the others' turns to end."""
    process = subprocess.Popen(
        [python, Path(__file__).with_name("train_trl.py"), task, folder, data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def step(number: int) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit(f"{task}: {python} ended without an answer; run it by hand to see why")
        return float(json.loads(answer)["loss"])

    return step


if __name__ == "__main__":
    if KEEPING_MEMORY.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPING_MEMORY})
    main()
