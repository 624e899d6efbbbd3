"""Sample completions of prompts: python -m cai_jax.generate --model=DIR --prompts=IN --out=OUT.

Reads one {"prompt": text} or {"messages": [{"role", "content"}, ...]} a line; the latter goes
through the model's chat template, whose end of a turn then ends completions; control tokens spelled
out in a message are text. Writes, in the same order, {"prompt", "completions": [{"text",
"token_ids", "logprobs", "finish_reason"}]}. A completion depends on the seed, the line's number and
the sample's number: not on the other lines or the batch size. With --num_hosts=N and --host=I each
of N processes writes its part of the lines, OUT-0000I-of-0000N.jsonl: together what one writes.
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
    flags = command_line.Parser(prog="python -m cai_jax.generate", description=__doc__)
    flags.add_argument(
        "--model", required=True, help="a Hugging Face folder or id, or a finished step"
    )
    flags.add_argument("--prompts", type=Path, required=True, help="a .jsonl or .jsonl.gz file")
    command_line.add_output_flags(flags)
    flags.add_argument("--max_new_tokens", type=int, default=128, help="end of text counts as one")
    flags.add_argument("--temperature", type=float, default=1.0, help="0: the most probable token")
    flags.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling; 1: off")
    flags.add_argument("--top_k", type=int, default=0, help="the k most probable tokens; 0: off")
    flags.add_argument(
        "--min_p", type=float, default=0.0, help="tokens this share as probable as the best; 0: all"
    )
    flags.add_argument("--num_samples", type=int, default=1, help="completions of each prompt")
    flags.add_argument(
        "--seed", type=command_line.seed, default=0, help="other seeds, other samples"
    )
    flags.add_argument(
        "--stop", action="append", default=[], help="text ends before this; may be repeated"
    )
    flags.add_argument("--batch_size", type=int, default=128, help="completions at a time")
    flags.add_argument(
        "--memory", type=float, default=0.0, help="GiB of keys and values at most; 0: no bound"
    )
    flags.add_argument(
        "--kv_cache", choices=("model", "int8"), default="model", help="what keys and values are in"
    )
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    args = parser().parse_args(arguments)
    command_line.keep_compiled()

    from cai_jax.generation.settings import SamplingSettings, Stats

    settings = SamplingSettings(
        args.max_new_tokens, args.temperature, args.top_k, args.top_p, tuple(args.stop), args.min_p
    )
    for name in ("num_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}: expected at least 1, found {getattr(args, name)}")
    if not 0 <= args.memory < float("inf"):
        raise InputError(f"memory: expected 0 (no bound) or more, found {args.memory}")
    part = command_line.checked_part(args)
    records = read_prompts(args.prompts)
    lines = range(len(records))[part.lines(len(records))]
    in_chat = any(not isinstance(value, str) for _, value in records)
    records = [records[line] for line in lines]

    from cai_jax.checkpoints import load_model
    from cai_jax.core.keys import base_key
    from cai_jax.core.progress import Progress
    from cai_jax.generation.generate import generate

    model = load_model(args.model)
    texts, prompts = [], []
    for where, value in records:
        text, ids = _encode(value, model.tokenizer, where)
        texts.append(text)
        prompts.append(ids)
    if in_chat:
        # Where a turn's end is not the end of text, as in Gemma, an answer ends there all the same.
        end = model.tokenizer.chat_end()
        settings = dataclasses.replace(settings, stop=(*settings.stop, *([end] if end else [])))

    samples = range(args.num_samples)
    # The line's number and the sample's: more samples leave the first ones as they are.
    ids = [line | sample << 32 for line in lines for sample in samples]
    stats = Stats()
    with Progress("generate", len(ids), unit="completions") as progress:
        completions = generate(
            model,
            [prompt for prompt in prompts for _ in samples],
            settings,
            (base_key(args.seed, "generate"), ids),
            batch_size=args.batch_size,
            names=[f"{where}: prompt" for where, _ in records for _ in samples],
            memory=int(args.memory * 2**30) or None,
            eight_bits=args.kv_cache == "int8",
            stats=stats,
            progress=progress,
        )
    written = [
        {
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "finish_reason": completion.finish_reason,
        }
        for completion in completions
    ]
    command_line.write_lines(
        part.file(args.out),
        (
            {"prompt": text, "completions": written[first : first + args.num_samples]}
            for text, first in zip(texts, range(0, len(written), args.num_samples))
        ),
    )
    if args.stats is not None:
        command_line.write_lines(part.file(args.stats), [dataclasses.asdict(stats)])


def read_prompts(path: Path) -> list[tuple[str, str | list[dict[str, str]]]]:
    """("file:line", prompt text or messages) of each line.

    Raises:
        InputError: naming file, line, field and what was expected.
    """
    from cai_jax.data.schema import json_lines

    records: list[tuple[str, Any]] = []
    for where, value in json_lines(path):
        if isinstance(value, dict) and "messages" in value:
            if "prompt" in value:
                raise InputError(f"{where}: expected prompt or messages, found both; keep one")
            messages = command_line.field(value, "messages", list, where)
            if not messages:
                raise InputError(f"{where}: messages: expected at least one message, found none")
            for index, message in enumerate(messages):
                for name in ("role", "content"):
                    command_line.field(message, name, str, f"{where}: messages[{index}]")
            records.append((where, messages))
        else:
            records.append((where, command_line.field(value, "prompt", str, where)))
    if not records:
        raise InputError(f"{path}: expected at least one prompt, found an empty file")
    return records


def _encode(value: str | list[dict[str, str]], tokenizer: Any, where: str) -> tuple[str, list[int]]:
    """The prompt as text and as token ids."""
    if isinstance(value, str):
        return value, tokenizer.encode_prompt(value)
    try:
        # The template writes the beginning-of-text token itself where the model wants one.
        return tokenizer.chat_prompt(value)
    except InputError as error:
        raise InputError(f"{where}: messages: {error}") from None


if __name__ == "__main__":
    main()
