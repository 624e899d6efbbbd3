"""What a caller may ask of the sampler, and what comes back."""

import dataclasses

from cai_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled.

    The order is temperature, then top-k, then top-p of what top-k left, then min-p. Tokens that tie
    with the last one kept are kept too.
    """

    max_new_tokens: int = 128  # the end-of-text token counts as one
    temperature: float = 1.0  # 0 takes the most probable token, the first of equals
    top_k: int = 0  # sample from the k most probable tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens whose probabilities add up to p; 1: from all
    stop: tuple[str, ...] = ()  # the text ends before the first of these to appear
    min_p: float = 0.0  # sample from tokens this share as probable as the most probable; 0: all

    def __post_init__(self):
        """Refuses settings that mean nothing."""
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
            ("stop", all(self.stop), "texts that are not empty"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise InputError(f"{name}: expected {expected}, found {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    `token_ids` end with the end-of-text token, or with the token that completes a stop string, if
    there was one; `text` holds neither. There is one log-probability (nats) a token.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]  # under the model: temperature 1, all tokens
    tempered_logprobs: list[float]  # under the distribution that was sampled; 0 for greedy tokens
    finish_reason: str  # "stop": end of text or stop string; "length": max_new_tokens


@dataclasses.dataclass
class Stats:
    """What sampling or scoring cost; calls add to it."""

    seconds: float = 0.0  # wall time, compiling included
    compile_seconds: float = 0.0  # of which XLA compiled
    prompt_tokens: int = 0  # in the prompts, one prompt for each completion asked for
    forwarded_prompt_tokens: int = 0  # of which the model computed; padding does not count
    generated_tokens: int = 0  # kept in completions
    decode_steps: int = 0  # forward passes of the decode loop, each over all slots
    slots: int = 0  # rows of the largest batch, padding rows included
