"""Generation on an accelerator, over what its memory and arithmetic allow: Llamas in bfloat16.

    python benchmarks/generate_accelerator.py [--parts=decode,prefill] [--shape=1b] [--peer] ...

prints one JSON object a variant, as soon as it is measured:

- `decode`: a step of the engine with B greedy texts. It must read the weights and the live keys and
  values once: `share_of_bandwidth` is what these bytes take at the bandwidth of a copy, measured in
  the same process, over what a step takes. That is the difference between 192 and 64 tokens after
  `--prompt` tokens, host's work included, over 128. With --peer the same difference of
  `transformers` with its compiled static cache, in a process of its own, with random weights of its
  own (the texts are not compared here; tests do that).
- `prefill`: one token after prompts of 2,048 tokens; MFU counts 2 FLOPs a parameter and token, and
  half of the attention's square, over the maker's dense bfloat16 peak (--peak).

Measured on one H200 (989 TFLOP/s, copies at 3.5 to 3.7 TB/s where the maker says 4.8), jax 0.11.2:

    decode   1b  B 1: 1.60 ms, .42    B 32: 1.60 ms, .53    B 256:  4.70 ms, .45
    decode   8b  B 1: 5.21 ms, .82    B 32: 6.22 ms, .81    B 256: 16.42 ms, .63
    prefill  1b  8 prompts: 244,000 tokens/s, MFU .51    32 prompts: 271,000 tokens/s, MFU .57

1b with B 32 beside `transformers` 5.17 (torch 2.11): 1.66 ms for 4.75, 2.9 times as fast.

What made the difference: layers one by one, not in a loop, which copied the weights, keys and
values of every layer in every step (B 32: 3.58 ms before); prompts read whole, up to 65,536 tokens
of all (`engine.TOGETHER`), since what goes on from a cache is no kernel's (MFU .19 before); all
columns of a chunk written at once, and chunks of 32 steps (B 256: 5.51 ms before). What is left: a
step of 1b is some 370 kernels, most of which take 1 to 3 microseconds whatever they do, and with
many texts attention reads all columns of a slot (768 here, of which 640 are live).
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from train_accelerator import SHAPES, parser, random_params, run_parts, timed

FEW, MANY = 64, 192  # tokens of completions, whose difference is timed


def main() -> None:
    """Runs the parts."""
    flags = parser(__doc__)
    flags.add_argument("--parts", default="decode,prefill")
    flags.add_argument("--batches", default="1,32,256", help="of decoding")
    flags.add_argument("--prompt", type=int, default=512, help="tokens, of decoding")
    flags.add_argument("--peer", action="store_true", help="decode with transformers too")
    flags.add_argument("--only_peer", type=int, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.only_peer:
        print(json.dumps(torch_decode(args, args.only_peer)))
    else:
        run_parts(args, globals())


def step_of(run: Callable[[int], None]) -> dict[str, Any]:
    """What a step takes, of run(tokens), each length once before it is timed."""
    medians = {}
    for tokens in (FEW, MANY):
        taken = []
        for _ in range(4):
            start = time.perf_counter()
            run(tokens)
            taken.append(time.perf_counter() - start)
        medians[tokens] = statistics.median(taken[1:])
    return {
        "step_ms": round(1e3 * (medians[MANY] - medians[FEW]) / (MANY - FEW), 3),
        "seconds": {tokens: round(of, 3) for tokens, of in medians.items()},
    }


def serve(model: Any, prompts: Any, new_tokens: int) -> None:
    """Greedy completions of so many tokens by the engine."""
    from cai_jax.core.keys import base_key
    from cai_jax.generation.generate import generate
    from cai_jax.generation.settings import SamplingSettings

    settings = SamplingSettings(new_tokens, temperature=0.0)
    keys = (base_key(0, "benchmark"), range(len(prompts)))
    found = generate(model, prompts, settings, keys, batch_size=len(prompts))
    assert all(len(one.token_ids) == new_tokens for one in found)


def random_model(config: Any) -> tuple[Any, int]:
    """(the model in bfloat16, bytes of what a step reads of it)."""
    import jax
    from generate import NoTokenizer

    from cai_jax.models.language_model import LanguageModel

    params = random_params(config, "bfloat16")
    read = sum(x.nbytes for x in jax.tree.leaves(params))
    if not config.tied_embeddings:
        read -= params["embedder"]["embedding"].nbytes
    return LanguageModel(config, params, NoTokenizer()), read


def decode(args: argparse.Namespace, config: Any) -> Any:
    """Steps of the engine over the memory's bandwidth."""
    import numpy as np

    copied = copy_bandwidth()
    model, weights = random_model(config)
    rng = np.random.default_rng(0)
    for batch in map(int, args.batches.split(",")):
        prompts = rng.integers(3, config.vocab_size, (batch, args.prompt)).tolist()
        found = step_of(functools.partial(serve, model, prompts))
        live = args.prompt + (FEW + MANY) / 2
        cache = batch * live * 4 * config.layers * config.kv_heads * config.head_dim
        least_ms = 1e3 * (weights + cache) / copied
        found = {"batch": batch} | found
        found |= {
            "gigabytes": round((weights + cache) / 1e9, 2),
            "copy_terabytes_per_second": round(copied / 1e12, 2),
            "share_of_bandwidth": round(least_ms / found["step_ms"], 3),
        }
        if args.peer:
            command = [sys.executable, __file__, *sys.argv[1:], f"--only_peer={batch}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peer = json.loads(done.stdout.splitlines()[-1])
            found["transformers"] = peer
            found["times_transformers"] = round(peer["step_ms"] / found["step_ms"], 2)
        yield found


def torch_decode(args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """A step of `transformers` with its compiled static cache, timed in the same way."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES[args.shape]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        intermediate_size=shape["hidden"],
        max_position_embeddings=8192,
        tie_word_embeddings=shape["tied_embeddings"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        prompts = torch.randint(3, config.vocab_size, (batch, args.prompt))

    def run(tokens: int) -> None:
        rows = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        assert rows.cpu().shape[1] == args.prompt + tokens

    return step_of(run)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 4 GB."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(10**9 if jax.default_backend() != "cpu" else 10**7, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds, _ = timed(lambda: copy(x), 10)
    return 2 * x.nbytes / seconds


def prefill(args: argparse.Namespace, config: Any) -> Any:
    """The engine's seconds for one token after long prompts."""
    import numpy as np
    from train import flops

    model, _ = random_model(config)
    rng = np.random.default_rng(0)
    for batch in (8, 32):
        prompts = rng.integers(3, config.vocab_size, (batch, args.length)).tolist()
        seconds, _ = timed(functools.partial(serve, model, prompts, 1), 3)
        needed = flops(config, batch * args.length, args.length, unembeds=False) / 3
        yield {"batch": batch, "length": args.length, "seconds": round(seconds, 3)} | {
            "tokens_per_second": round(batch * args.length / seconds),
            "mfu": round(needed / seconds / args.peak, 3),
        }


if __name__ == "__main__":
    main()
