"""Critiques and revisions beside `transformers.generate`: chains of four rounds behind few-shots.

    python benchmarks/critique_revise.py [--records=32] [--parts=cai_jax,transformers]

With the random Llama of benchmarks/generate.py, every record answers, then criticises and revises
its last answer under principles drawn among 16, four times, behind few-shots of the length of the
paper's own. Texts have lengths of their own, as where a stop string ends them. `transformers` is
sent every prompt whole, a batch of all records for each of the nine texts, and goes on to the
longest of a batch, with the cache that is faster in benchmarks/generate.py. Prints a line, and one
JSON object; `forwarded_over_distinct` is how often a prompt token is computed.

Run it alone on the machine: whatever else runs there is in the numbers.

Measured with 16 records on two CPU cores: 28.4 s for 7,972 tokens (two runs, 28.2 and 28.6), and
right after it the first four of transformers' nine texts: 3.6, 37.4, 34.2 and 34.1 s, all with the
same tokens. The other five were not timed then; at the mean of the last three, 35.2 s, all nine are
285 s, 10.0 times as long. Before keys were read in blocks it was 29.5 s to 266.8 s, 9.0 times, its
nine texts timed one by one within two hours. 0.77 of the distinct prompt tokens are read, since the
others were written there; to send prompts whole is to read 17.4 times the distinct ones.

Where the time goes, with a wait after each program: 608 steps of 26.8 ms (34.6 without blocks; the
longest chain has as many), 13 of 16 slots live on average, and 11 s to read: requests, two at a
time, at 120 GFLOP/s (8.9 s, of which a fifth is padding), the few-shots (1.1 s), dialogues. Of a
step, products with weights are 11 to 13 ms (78 GFLOP/s with 16 rows, 109 with 32, 178 with 128),
the few-shots' keys and values 6, the slots' own 5.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Generator
from typing import Any

from generate import PEERS, both_models, parser

ROUNDS = 4
PRINCIPLES = 16


def main() -> None:
    """Times both on the same chains."""
    flags = parser()
    flags.add_argument("--records", type=int, default=32)
    flags.add_argument("--few_shot_tokens", type=int, default=2000)
    flags.add_argument("--dialogue_tokens", type=int, default=60, help="half to one and a half")
    flags.add_argument("--request_tokens", type=int, default=40, help="of a critique or a revision")
    flags.add_argument("--parts", default="cai_jax,transformers", help="which to run")
    flags.add_argument("--cache", default="dynamic", choices=PEERS, help="of transformers")
    flags.set_defaults(shortest=16, longest=96)
    args = flags.parse_args()
    import numpy as np

    rng = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return rng.integers(1, args.vocabulary, count).tolist()

    few_shots = words(args.few_shot_tokens)
    principles = [(words(args.request_tokens), words(args.request_tokens)) for _ in range(16)]
    half = args.dialogue_tokens // 2
    chains = [
        (
            words(int(rng.integers(half, 3 * half + 1))),
            [principles[number] for number in rng.integers(0, PRINCIPLES, ROUNDS)],
            rng.integers(args.shortest, args.longest + 1, 1 + 2 * ROUNDS).tolist(),
        )
        for _ in range(args.records)
    ]
    model, module = both_models(args)
    contestants = {
        "cai_jax": lambda: ours(model, few_shots, chains, args.prompts),
        "transformers": lambda: theirs(module, few_shots, chains, args.prompts, args.cache),
    }
    result: dict[str, Any] = {"records": args.records, "tokens": sum(sum(c[2]) for c in chains)}
    written = {}
    for name in args.parts.split(","):
        if name == "cai_jax":
            contestants[name]()  # compiles
        started = time.perf_counter()
        written[name], more = contestants[name]()
        result[name] = {"seconds": round(time.perf_counter() - started, 3), **more}
        print(f"{name:13} {result[name]['seconds']:9.2f} s", file=sys.stderr)
    if len(written) == 2:
        mine, other = written.values()
        result["times_transformers"] = round(
            result["transformers"]["seconds"] / result["cai_jax"]["seconds"], 2
        )
        result["same_chains"] = sum(a == b for a, b in zip(mine, other)) / args.records
        print(f"{result['times_transformers']} x transformers", file=sys.stderr)
    print(json.dumps(result))


Chain = tuple[list[int], list[tuple[list[int], list[int]]], list[int]]


def prompts_of(few_shots: list[int], chain: Chain) -> Generator[list[int], list[int], list[int]]:
    """Yields the prompts of a chain, and is sent what was written; returns the last revision."""
    dialogue, drawn, _ = chain
    text = yield dialogue
    for critique_request, revision_request in drawn:
        prompt = [*few_shots, *dialogue, *text, *critique_request]
        critique = yield prompt
        text = yield [*prompt, *critique, *revision_request]
    return text


def ours(
    model: Any, few_shots: list[int], chains: list[Chain], slots: int
) -> tuple[list[list[int]], dict[str, Any]]:
    """The last revisions, and counts."""
    import numpy as np

    from cai_jax.generation.generate import Ask, converse
    from cai_jax.generation.prefixes import distinct_tokens
    from cai_jax.generation.settings import SamplingSettings, Stats

    sent = []

    def conversation(number: int) -> Generator[Ask, Any, list[int]]:
        asked, written = prompts_of(few_shots, chains[number]), None
        for budget in chains[number][2]:
            prompt = asked.send(written)
            sent.append(prompt)
            settings = SamplingSettings(budget, temperature=0.0)
            completion = yield Ask(prompt, settings, np.zeros(2, np.uint32), f"{number}")
            written = completion.token_ids
        return written

    stats = Stats()
    talks = (conversation(number) for number in range(len(chains)))
    last = converse(model, talks, len(chains), batch_size=slots, stats=stats)
    distinct = distinct_tokens(sent)
    return last, {
        "forwarded_over_distinct": round(stats.forwarded_prompt_tokens / distinct, 4),
        "sent_over_distinct": round(stats.prompt_tokens / distinct, 1),
        "stats": dataclasses.asdict(stats),
    }


def theirs(
    module: Any, few_shots: list[int], chains: list[Chain], batch: int, cache: str
) -> tuple[list[list[int]], dict[str, Any]]:
    """The last revisions, batch by batch."""
    import torch

    last: list[list[int]] = []
    for first in range(0, len(chains), batch):
        some = chains[first : first + batch]
        asked = [prompts_of(few_shots, chain) for chain in some]
        written: list[Any] = [None] * len(some)
        for number in range(1 + 2 * ROUNDS):
            prompts = [of_one.send(text) for of_one, text in zip(asked, written)]
            width = max(map(len, prompts))
            rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
            mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
            found = module.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=max(chain[2][number] for chain in some),
                do_sample=False,
                eos_token_id=None,
                cache_implementation=cache,
            )[:, width:].tolist()
            written = [row[: chain[2][number]] for row, chain in zip(found, some)]
        last += written
    return last, {}


if __name__ == "__main__":
    main()
