"""Two-choice feedback beside `transformers`: 16 principles x 200 comparisons behind five few-shots.

    python benchmarks/score.py [--comparisons=200] [--principles=16] [--repeats=3]

reads, with the random Llama of benchmarks/generate.py, the log-probabilities of two tokens after
prompts that share few-shots, and of which each dialogue is asked about under every principle. The
peer sends every prompt whole, in batches sorted by length, and reads the last position alone
(`logits_to_keep=1`). Prints a table, and one JSON object; `largest_difference` is that of the two
results, in nats, and `forwarded_over_distinct` how often a prompt token is computed.

Run it alone on the machine: whatever else runs there is in the numbers.

Measured on two CPU cores with 40 comparisons, in one go: 25.0 prompts a second (the second run; the
first compiled), 6.9 times transformers (3.63, 176 s, one run); 1.12 forwarded over distinct, and
results up to 0.0005 nats apart. All 200: 27.0 prompts a second, 119 s (one run, programs compiled,
ten minutes later; 1.13 forwarded over distinct, since dialogues below 64 tokens are no segments).
Transformers was not timed on these: at its 3.63 it would take 882 s, 7.4 times as long. With 16 it
had been 5.05 times, where texts of 41 tokens behind a prefix were computed as 65.
"""

import dataclasses
import json
from typing import Any

from generate import both_models, parser, print_table, timed


def main() -> None:
    """Times both, on the same prompts."""
    flags = parser()
    flags.add_argument("--comparisons", type=int, default=200)
    flags.add_argument("--principles", type=int, default=16)
    flags.add_argument("--few_shot_tokens", type=int, default=500, help="of all five together")
    flags.add_argument("--dialogue_tokens", type=int, default=100, help="half to one and a half")
    flags.add_argument("--question_tokens", type=int, default=40, help="a principle and options")
    args = flags.parse_args()
    import numpy as np
    import torch

    from cai_jax.generation.prefixes import distinct_tokens
    from cai_jax.generation.score import choice_logprobs
    from cai_jax.generation.settings import Stats

    model, module = both_models(args)
    rng = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return rng.integers(1, args.vocabulary, count).tolist()

    few_shots = words(args.few_shot_tokens)
    principles = [words(args.question_tokens) for _ in range(args.principles)]
    lengths = rng.integers(args.dialogue_tokens // 2, 3 * args.dialogue_tokens // 2 + 1, 10_000)
    prompts = []
    for length in lengths[: args.comparisons]:
        dialogue = words(int(length))
        prompts += [[*few_shots, *dialogue, *principle] for principle in principles]
    choices = (1, 2)
    stats = Stats()

    def ours() -> Any:
        ids = [[choice] for choice in choices]
        return choice_logprobs(model, prompts, ids, batch_size=args.prompts, stats=stats)

    @torch.no_grad()
    def theirs() -> Any:
        found = np.zeros((len(prompts), 2), np.float32)
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for first in range(0, len(order), args.prompts):
            some = order[first : first + args.prompts]
            width = len(prompts[some[0]])
            rows = [[0] * (width - len(prompts[n])) + prompts[n] for n in some]
            mask = [[0] * (width - len(prompts[n])) + [1] * len(prompts[n]) for n in some]
            logits = module(
                torch.tensor(rows), attention_mask=torch.tensor(mask), logits_to_keep=1
            ).logits[:, -1]
            found[some] = torch.log_softmax(logits, -1)[:, list(choices)].numpy()
        return found

    found = {}
    seconds = {
        "cai_jax": timed(lambda: found.update(mine=ours()), args.repeats),
        "transformers": timed(lambda: found.update(other=theirs()), args.repeats),
    }
    forwarded = stats.forwarded_prompt_tokens / (args.repeats + 1)
    rates = {who: round(len(prompts) / taken, 1) for who, taken in seconds.items()}
    result = {
        "feedback": {
            "prompts": len(prompts),
            "prompts_per_second": rates,
            "times_transformers": round(rates["cai_jax"] / rates["transformers"], 2),
            "largest_difference": float(np.abs(found["mine"] - found["other"]).max()),
            "forwarded_over_distinct": round(forwarded / distinct_tokens(prompts), 4),
            "stats": dataclasses.asdict(stats),
        }
    }
    print_table(result, ["feedback"], "prompts_per_second")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
