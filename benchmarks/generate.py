"""Greedy generation beside `transformers.generate`: tokens a second of the same model, in one run.

    python benchmarks/generate.py [--workloads=equal,ragged] [--prompts=32] [--repeats=3] ...

makes a random Llama of 28M parameters (float32), and times two workloads, each after one run that
compiles: `equal`, where prompts have 128 tokens and completions too, and `ragged`, where
completions have 8 to 256 tokens, four batches of them. `transformers` decodes batch by batch, with
its dynamic and with its static cache, and the better one counts; it goes on to the longest of a
batch. With `--tunix=PYTHON` so does Tunix's sampler, in that environment. Prints a table, and one
JSON object. `same_tokens` is the share of completions that are as ours: ties of random weights
aside, all.

Run it alone on the machine: whatever else runs there is in the numbers.

Measured on two CPU cores, whose speed moves by a fifth from hour to hour, beside the others before
keys were read in blocks (`generation/slots.py`): `equal` 755 tokens/s, 1.31 times transformers (575
with a dynamic cache, 532 with a static one) and 1.59 times Tunix 0.1.7 (475), one run; `ragged`
486, 1.89 times transformers (257, dynamic cache; one run of each). All tokens of all were the same.
vLLM is not beside them: what PyPI has of it wants CUDA, and a build of it for CPUs was not tried.
With blocks, beside the same program without them and with the same tokens, and not beside the
others again: `ragged` 577 for 539 tokens/s (one run each), `equal` 771 for 678 (medians of three).

What no program could do better, measured in one go: products with weights alone take 1.05 s for the
4,096 prompt tokens of `equal` and 17.3 ms a step of 32 by XLA, 1.26 s and 22 to 35 ms by torch; 128
steps with them 3.3 s, and 4.1 to 5.8 s. `transformers` took 7.6 to 9.4 s then (three runs of each
cache, medians 8.8 and 8.3): so 2.5 times is all that products alone leave to XLA, without attention
and whatever else, and 2.0 times to torch's. To read live keys and values once would be 0.5 s more,
by arithmetic at 25 GB/s, which leaves 2.2. In `ragged`, 16,384 prompt tokens and 539 full steps are
13.5 s by the same numbers, 4.9 times less than the 65.8 s that transformers took earlier.

Where a step's time goes, 32 slots of 384 columns, 31 ms (41 without blocks): products with weights
17 ms, attention about 9, blocks 2, the rest 3. What did not help: queries, keys and values, or gate
and up, in one product: the same. Weights stored the other way round: 21 ms; in blocks of 64 or 128
outputs: 30 ms. YNNPACK is the compiler's choice already. What did help in `ragged`: no columns
beyond the budget, and refills of fewer slots, the last of them at once (685 steps for 734). In it
25 of 32 slots are live on average in slots of 384 columns, since the last requests run out; to go
on with 16 slots then would save a twentieth, by simulation. To begin with the largest budgets would
take 569 steps, but what a text's length will be is not known where stop strings end it.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

PEERS = ("dynamic", "static")


class NoTokenizer:
    """Of texts that are tokens, and never end."""

    bos_id = eos_id = None
    stops = ()

    def encode(self, text: str) -> list[int]:
        """Nothing is encoded."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """No text."""
        return ""


def parser() -> argparse.ArgumentParser:
    """The flags: the workload's size, and the model's."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    flags.add_argument("--prompts", type=int, default=32, help="and rows of a batch")
    flags.add_argument("--prompt_tokens", type=int, default=128)
    flags.add_argument("--new_tokens", type=int, default=128)
    flags.add_argument("--shortest", type=int, default=8, help="of the ragged completions")
    flags.add_argument("--longest", type=int, default=256)
    flags.add_argument(
        "--repeats", type=int, default=3, help="of which the median counts, after a first time"
    )
    for name, value in SHAPE.items():
        flags.add_argument(f"--{name}", type=int, default=value)
    return flags


# Tunix 0.1.7's Llama turns by this, whatever its configuration says.
ROPE_THETA = 1_000_000.0
SHAPE = {
    "vocabulary": 8192,
    "width": 512,
    "layers": 8,
    "heads": 8,
    "kv_heads": 4,
    "hidden": 1408,
}


def both_models(args: argparse.Namespace) -> tuple[Any, Any]:
    """(ours, the torch module) of the same random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai_jax.models import weights
    from cai_jax.models.language_model import LanguageModel

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        intermediate_size=args.hidden,
        max_position_embeddings=4096,
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(shape).eval().float()
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        config, params = weights.read_folder(Path(folder))
    return LanguageModel(config, params, NoTokenizer()), module


def main() -> None:
    """Runs the workloads."""
    flags = parser()
    flags.add_argument("--workloads", default="equal,ragged", help="which to run")
    flags.add_argument("--tunix", help="a Python with Tunix, whose sampler runs besides")
    args = flags.parse_args()
    import numpy as np
    import torch

    from cai_jax.core.keys import base_key
    from cai_jax.generation.generate import generate
    from cai_jax.generation.settings import SamplingSettings, Stats

    model, module = both_models(args)
    rng = np.random.default_rng(0)

    def prompts(count: int) -> list[list[int]]:
        return rng.integers(1, args.vocabulary, (count, args.prompt_tokens)).tolist()

    ragged = rng.integers(args.shortest, args.longest + 1, 4 * args.prompts).tolist()
    workloads = {
        "equal": (prompts(args.prompts), [args.new_tokens] * args.prompts),
        "ragged": (prompts(4 * args.prompts), ragged),
    }
    workloads = {name: workloads[name] for name in args.workloads.split(",")}
    result: dict[str, Any] = {"shape": {name: getattr(args, name) for name in SHAPE}}
    for name, (texts, budgets) in workloads.items():
        settings = [SamplingSettings(budget, temperature=0.0) for budget in budgets]
        stats = Stats()

        def ours(texts=texts, settings=settings, stats=stats) -> list[list[int]]:
            keys = (base_key(0, "benchmark"), range(len(texts)))
            found = generate(model, texts, settings, keys, batch_size=args.prompts, stats=stats)
            return [completion.token_ids for completion in found]

        def theirs(cache: str, texts=texts, budgets=budgets) -> list[list[int]]:
            found: list[list[int]] = []
            for first in range(0, len(texts), args.prompts):
                some = budgets[first : first + args.prompts]
                rows = module.generate(
                    torch.tensor(texts[first : first + args.prompts]),
                    max_new_tokens=max(some),
                    do_sample=False,
                    eos_token_id=None,
                    cache_implementation=cache,
                )[:, args.prompt_tokens :].tolist()
                found += [row[:budget] for row, budget in zip(rows, some)]
            return found

        seconds = {"cai_jax": timed(ours, args.repeats)}
        for cache in PEERS:
            seconds[cache] = timed(lambda cache=cache: theirs(cache), args.repeats)
        mine = ours()
        same = {"dynamic": share_of_same(mine, theirs("dynamic"))}
        if args.tunix:
            seconds["tunix"], found = tunix(args, module, texts, budgets)
            same["tunix"] = share_of_same(mine, found)
        rates = {who: round(sum(budgets) / taken, 1) for who, taken in seconds.items()}
        result[name] = {
            "tokens": sum(budgets),
            "tokens_per_second": rates,
            "times_transformers": round(rates["cai_jax"] / max(rates[peer] for peer in PEERS), 2),
            "same_tokens": same,
            "stats": dataclasses.asdict(stats),
        }
    print_table(result, workloads, "tokens_per_second")
    print(json.dumps(result))


def share_of_same(mine: list[list[int]], found: list[list[int]]) -> float:
    """Of completions that are alike."""
    return round(sum(a == b for a, b in zip(mine, found, strict=True)) / len(mine), 3)


def tunix(
    args: argparse.Namespace, module: Any, prompts: list[list[int]], budgets: list[int]
) -> tuple[float, list[list[int]]]:
    """The seconds of Tunix's sampler, batch by batch in a process of its own, and its tokens."""
    firsts = range(0, len(prompts), args.prompts)
    work = {
        "prompts": [prompts[first : first + args.prompts] for first in firsts],
        "new_tokens": [max(budgets[first : first + args.prompts]) for first in firsts],
        "repeats": args.repeats,
        "rope_theta": module.config.rope_parameters["rope_theta"],
    }
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work))
        script = Path(__file__).with_name("generate_tunix.py")
        done = subprocess.run(
            [args.tunix, script, folder, path], stdout=subprocess.PIPE, text=True, check=True
        )
    made = json.loads(done.stdout.splitlines()[-1])
    tokens = [row[:budget] for row, budget in zip(made["tokens"], budgets, strict=True)]
    return statistics.median(made["seconds"]), tokens


def timed(run: Callable[[], Any], repeats: int) -> float:
    """The median of the seconds that `run` takes, after one time that compiles, if it is done."""
    taken = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:] or taken)


def print_table(result: dict[str, Any], workloads: Any, measure: str) -> None:
    """One line a workload, on stderr."""
    for name in workloads:
        cells = "  ".join(f"{who} {rate:>9,.1f}" for who, rate in result[name][measure].items())
        times = f"{result[name]['times_transformers']:.2f} x transformers"
        print(f"{name:10} {measure}: {cells}  {times}", file=sys.stderr)


if __name__ == "__main__":
    main()
