"""Tunix's sampler on the work of benchmarks/generate.py, which runs this by itself.

    PYTHON_WITH_TUNIX generate_tunix.py FOLDER WORK.json

FOLDER is a Llama for Hugging Face; WORK has its batches of prompts (token ids), the tokens to
generate for each batch, and how often. Prints a JSON object: {"tokens" of each prompt, "seconds" of
each time but the first, which compiles}.

Tunix 0.1.7 turns queries and keys by the base 1,000,000 and does not look at `rope_theta`: models
of another base say something else there.
"""

import json
import sys
import time
from pathlib import Path


class Numbers:
    """Of texts that are numbers of tokens, which never end."""

    def encode(self, text: str) -> list[int]:
        """The numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """No text."""
        return ""

    def bos_id(self) -> int:
        """Of no token: 0 counts as none."""
        return 0

    def pad_id(self) -> int:
        """Of no token, in a prompt or generated: the sampler sees no padding."""
        return -1

    def eos_id(self) -> int:
        """Of no token."""
        return -2


def main() -> None:
    """Reads the work, does it, and prints."""
    import jax.numpy as jnp
    from tunix.generate import sampler
    from tunix.models.llama3 import model, params

    folder, work = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    shape = json.loads((folder / "config.json").read_text())
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    config = model.ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=heads,
        head_dim=shape["hidden_size"] // heads,
        num_kv_heads=kv_heads,
        rope_theta=int(work["rope_theta"]),
        norm_eps=shape["rms_norm_eps"],
        weight_tying=shape["tie_word_embeddings"],
    )
    transformer = params.create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32)
    longest = max(len(prompt) for batch in work["prompts"] for prompt in batch)
    cache = sampler.CacheConfig(
        cache_size=longest + max(work["new_tokens"]) + 1,
        num_layers=config.num_layers,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim,
    )
    sample = sampler.Sampler(transformer, Numbers(), cache)

    def run() -> list[list[int]]:
        found: list[list[int]] = []
        for prompts, count in zip(work["prompts"], work["new_tokens"]):
            texts = [" ".join(map(str, prompt)) for prompt in prompts]
            made = sample(texts, max_generation_steps=count, max_prompt_length=longest)
            found += [list(map(int, tokens)) for tokens in made.tokens]
        return found

    tokens = run()
    seconds = []
    for _ in range(work["repeats"]):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"tokens": tokens, "seconds": seconds}))


if __name__ == "__main__":
    main()
