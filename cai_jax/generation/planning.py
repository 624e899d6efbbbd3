"""What sampling will take, by arithmetic: counts for the plans of steps."""

from collections.abc import Mapping, Sequence
from typing import Any

FLOPS_PER_TOKEN = 2.0  # of a forward pass, for each parameter


def prompts_taken(planned: Any, limit: int) -> tuple[int, float]:
    """How many prompts a step takes, and their tokens.

    Args:
        planned: {"records", "tokens"} of a file of prompts, or what a step that makes prompts plans
            ("prompt_tokens": those of its prompts), or a list of them.
        limit: at most so many of each file; 0: all.
    """
    records, tokens = 0, 0.0
    for counts in planned if isinstance(planned, Sequence) else [planned]:
        taken = min(counts["records"], limit) if limit else counts["records"]
        records += taken
        there = counts.get("prompt_tokens", counts["tokens"])
        tokens += there * taken / max(counts["records"], 1)
    return records, tokens


def forward_flops(model: Mapping[str, Any], tokens: float) -> float:
    """FLOPs of a model ({"parameters"}) to read or write so many tokens."""
    return FLOPS_PER_TOKEN * model.get("parameters", 0) * tokens


def few_shot_tokens(constitution: Mapping[str, Any], kind: str, count: int) -> int:
    """Tokens of the first `count` few-shots of a constitution, as `inputs.count` counts them.

    Args:
        constitution: {"critique_few_shots", "comparison_few_shots", "reasoning_few_shots"}, each
            with the tokens of its examples; without them, 0.
        kind: "critique", "comparison" or "reasoning".
        count: at most so many.
    """
    return sum(constitution.get(f"{kind}_few_shots", ())[:count])
