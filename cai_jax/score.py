"""Log-probabilities of given texts: python -m cai_jax.score --model=DIR --texts=IN --out=OUT.

Reads one {"prompt": text, "completions": [text, ...]} a line. Writes, in the same order,
{"completions": [{"token_ids", "logprobs", "total"}]}: the log-probability (nats) of each token of a
completion given the prompt and the tokens before it, and their sum. The prompt and each completion
are tokenized by themselves. A prompt shared by completions or lines is computed once. With
--num_hosts=N and --host=I each of N processes writes its part, as in `generate.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax import command_line
from cai_jax.errors import InputError, exits_on_input_error


def parser() -> command_line.Parser:
    """The flags."""
    flags = command_line.Parser(prog="python -m cai_jax.score", description=__doc__)
    flags.add_argument(
        "--model", required=True, help="a Hugging Face folder or id, or a finished step"
    )
    flags.add_argument("--texts", type=Path, required=True, help="a .jsonl or .jsonl.gz file")
    command_line.add_output_flags(flags)
    flags.add_argument("--batch_size", type=int, default=64, help="completions at a time")
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    args = parser().parse_args(arguments)
    command_line.keep_compiled()
    if args.batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, found {args.batch_size}")
    part = command_line.checked_part(args)
    records = read_texts(args.texts)
    records = records[part.lines(len(records))]

    from cai_jax.checkpoints import load_model
    from cai_jax.core.progress import Progress
    from cai_jax.generation.score import score
    from cai_jax.generation.settings import Stats

    model = load_model(args.model)
    prompts = [model.tokenizer.encode_prompt(prompt) for _, prompt, _ in records]
    completions = [[model.tokenizer.encode(text) for text in texts] for _, _, texts in records]
    stats = Stats()
    with Progress("score", len({tuple(prompt) for prompt in prompts}), unit="prompts") as progress:
        scored = score(
            model,
            prompts,
            completions,
            batch_size=args.batch_size,
            names=[f"{where}: prompt" for where, _, _ in records],
            stats=stats,
            progress=progress,
        )
    command_line.write_lines(
        part.file(args.out),
        (
            {"completions": [_written(ids, array) for ids, array in zip(texts, arrays)]}
            for texts, arrays in zip(completions, scored)
        ),
    )
    if args.stats is not None:
        command_line.write_lines(part.file(args.stats), [dataclasses.asdict(stats)])


def read_texts(path: Path) -> list[tuple[str, str, list[str]]]:
    """("file:line", prompt, completions) of each line.

    Raises:
        InputError: naming file, line, field and what was expected.
    """
    from cai_jax.data.schema import json_lines

    records = []
    for where, value in json_lines(path):
        prompt = command_line.field(value, "prompt", str, where)
        completions = command_line.field(value, "completions", list, where)
        for index, text in enumerate(completions):
            if not isinstance(text, str):
                raise InputError(
                    f"{where}: completions[{index}]: expected text, found {str(text)[:40]!r}"
                )
            command_line.check_text(text, f"{where}: completions[{index}]")
        records.append((where, prompt, completions))
    if not records:
        raise InputError(f"{path}: expected at least one prompt, found an empty file")
    return records


def _written(ids: list[int], logprobs: Any) -> dict[str, Any]:
    return {
        "token_ids": ids,
        "logprobs": logprobs.tolist(),
        "total": float(logprobs.sum(dtype="float64")),
    }


if __name__ == "__main__":
    main()
