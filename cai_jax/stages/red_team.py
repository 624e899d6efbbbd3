"""More red-team prompts, by few-shot prompting of a pretrained model (paper section 3.2).

The paper made 140,335 of its 182,831 prompts so. The model sees a list of prompts that people wrote
and writes the next item. What repeats a prompt of theirs, or an earlier one of its own, is dropped;
every drop is counted by its reason and kept readable.
"""

from __future__ import annotations

import functools
import random
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.generation import planning

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.data.schema import DroppedPrompt, Prompt, Sample
    from cai_jax.text.few_shots import Fitted

# What is drawn for a record, each with a key of its own.
FEW_SHOTS, TEXT = range(2)

FORMATS = ("numbered", "turns")
REASONS = (
    "unfinished",  # ended by its maximum of tokens
    "too_short",
    "repeats_human",  # equal up to case, space and punctuation
    "repeats_generated",
    "near_human",
    "near_generated",
)

# Texts sampled at a time: enough for a batch, and not more than the host holds with ease. What is
# finished of them outlasts the process.
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.num_prompts = 1000  # to be kept
    config.max_attempts = 0  # texts looked at, at most; 0: four times num_prompts
    config.num_few_shots = 8  # drawn for each text; fewer where there is no room for them
    # "numbered": `header` and a numbered list, an item a line; "turns": human turns of dialogues,
    # without `header`, for a model that knows little else.
    config.format = "numbered"
    config.header = "Messages that people wrote to get a chat assistant to say something harmful:"
    config.temperature = 1.0
    config.top_k = 0
    config.top_p = 1.0
    config.max_prompt_tokens = 64  # a text that is longer is dropped
    config.min_words = 3  # a text with fewer is dropped
    # Near-duplicates: a Jaccard index of at least `similarity` between the sets of word n-grams.
    config.ngram = 3
    config.similarity = 0.5
    config.batch_size = 128
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


class Example(NamedTuple):
    """A prompt that somebody wrote: the opening turn of a dialogue, on one line."""

    id: str
    text: str


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes prompts.jsonl (what was kept) and dropped.jsonl (what was not, and why).

    Texts are looked at in the order of their ids, NAME-0, NAME-1, ..., until there are enough: the
    result does not depend on the batch size.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`, and `prompts` that people wrote (a file or a list of them). Of each
            dialogue the opening turn counts, since later ones do not stand alone.
        folder: the step's own, empty.

    Returns:
        Counts: records (prompts), tokens (generated), attempts (texts looked at), a count for each
        of REASONS, missing (of num_prompts), surplus (texts sampled and not looked at), examples
        (distinct openings that people wrote) and few_shots_dropped (for want of room).

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit; nothing was kept.
    """
    import jax

    from cai_jax import checkpoints
    from cai_jax.core import keys, mesh
    from cai_jax.core.blocks import kept
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import (
        DroppedPrompt,
        Prompt,
        Sample,
        Turn,
        read_records,
        write_file,
        write_records,
    )
    from cai_jax.generation.generate import generate

    check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    examples = distinct_openings(readers.read_all_prompts(inputs["prompts"], 0, config.fields, bad))
    if len(examples) < config.num_few_shots:
        raise InputError(
            f"num_few_shots: expected at most the {len(examples)} distinct prompts that there are, "
            f"found {config.num_few_shots}"
        )
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    key = keys.base_key(config.seed, folder.name)
    sieve = Sieve(config, examples)
    counts: Counter[str] = Counter()
    prompts: list[Prompt] = []
    dropped: list[DroppedPrompt] = []

    def sample(ids: Sequence[str], fitted: Sequence[Fitted]) -> list[Sample]:
        completions = generate(
            model,
            [prompt.ids for prompt in fitted],
            settings(config),
            (jax.random.fold_in(key, TEXT), ids),
            batch_size=config.batch_size,
            names=ids,
            mesh=device_mesh,
        )
        counts["tokens"] += sum(len(completion.token_ids) for completion in completions)
        return [Sample(i, of.text, of.finish_reason) for i, of in zip(ids, completions)]

    read, blocks = functools.partial(read_records, record_type=Sample), 0
    with Progress(f"{folder.name} (red_team)", config.num_prompts, "prompts") as progress:
        while size := block_size(config, counts["attempts"], len(prompts)):
            first = counts["attempts"]
            ids = [f"{folder.name}-{number}" for number in range(first, first + size)]
            drawn = draw_few_shots(config, key, ids, examples)
            fitted = fit(config, drawn, model)
            make = functools.partial(sample, ids, fitted)
            completions = kept(folder, blocks, counts, make, write_file, read)
            blocks += 1
            for id, shots, prompt, completion in zip(ids, drawn, fitted, completions):
                if len(prompts) == config.num_prompts:
                    counts["surplus"] += 1
                    continue
                counts["attempts"] += 1
                counts["few_shots_dropped"] += prompt.dropped
                text = cut(config, completion.text)
                reason, match = sieve.reason_to_drop(text, completion.finish_reason)
                if reason:
                    counts[reason] += 1
                    of, similarity = (match.id, match.similarity) if match else (None, None)
                    dropped.append(DroppedPrompt(id, text, reason, of, similarity))
                    continue
                sieve.keep(id, text)
                shown = [example.id for example in shots[prompt.dropped :]]
                tags = {"source": "generated", "few_shots": shown}
                prompts.append(Prompt(id, (Turn("human", text),), tags))
                progress.advance()
    write_records(folder / "dropped.jsonl", dropped)
    if not prompts:
        raise InputError(
            f"none of {counts['attempts']} texts is a new prompt: "
            + ", ".join(f"{counts[reason]} {reason}" for reason in REASONS if counts[reason])
            + f"; read {folder / 'dropped.jsonl'}"
        )
    write_records(folder / "prompts.jsonl", prompts)
    wanted = ("tokens", "attempts", *REASONS, "surplus", "few_shots_dropped")
    return {
        "records": len(prompts),
        **{name: counts[name] for name in wanted},
        "missing": config.num_prompts - len(prompts),
        "examples": len(examples),
    } | bad.report(folder)


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    for role in ("model", "prompts"):
        if role not in inputs:
            raise InputError(f"inputs: expected model and prompts, found no {role}")
    lowest = {"num_prompts": 1, "max_attempts": 0, "num_few_shots": 0, "min_words": 1, "ngram": 1}
    for name, least in lowest.items():
        if config[name] < least:
            raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    if config.format not in FORMATS:
        raise InputError(f"format: expected {' or '.join(FORMATS)}, found {config.format!r}")
    if not 0 < config.similarity <= 1:
        raise InputError(
            f"similarity: expected more than 0 and at most 1, found {config.similarity}"
        )
    settings(config)


def settings(config: ConfigDict) -> Any:
    """How texts are sampled: up to the end of the line, or of the turn."""
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS

    return SamplingSettings(
        max_new_tokens=config.max_prompt_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=("\n",) if config.format == "numbered" else STOPS,
    )


def distinct_openings(prompts: Sequence[Prompt]) -> list[Example]:
    """The opening turns, each but once: a list of examples that repeats itself asks for more."""
    from cai_jax.text.duplicates import normalise

    openings: dict[str, Example] = {}
    for prompt in prompts:
        opening = next(turn.text for turn in prompt.dialogue if turn.role == "human")
        openings.setdefault(normalise(opening), Example(prompt.id, " ".join(opening.split())))
    return list(openings.values())


def block_size(config: ConfigDict, attempts: int, kept: int) -> int:
    """How many texts to sample next: as many as are missing, at the rate of those kept so far.

    It depends on earlier texts alone, so that all counts are the same for every batch size.
    """
    missing = config.num_prompts - kept
    left = (config.max_attempts or 4 * config.num_prompts) - attempts
    if not missing:
        return 0
    expected = -(-missing * max(attempts, 1) // max(kept, 1))
    return max(min(max(expected, SMALLEST_BLOCK), LARGEST_BLOCK, left), 0)


def draw_few_shots(
    config: ConfigDict, key: jax.Array, ids: Sequence[str], examples: Sequence[Example]
) -> list[list[Example]]:
    """Examples for each record, drawn without replacement by its id alone."""
    import jax

    from cai_jax.generation.batching import record_keys

    bits = record_keys(jax.random.fold_in(key, FEW_SHOTS), ids)
    return [random.Random(w.tobytes()).sample(examples, config.num_few_shots) for w in bits]


def lay_out(config: ConfigDict, texts: Sequence[str]) -> str:
    """The list of examples, up to where the next one begins."""
    from cai_jax.text.dialogue import HUMAN

    if config.format == "turns":
        return "".join(f"{HUMAN} {text}" for text in texts) + HUMAN
    items = "".join(f"{number}. {text}\n" for number, text in enumerate(texts, start=1))
    return f"{config.header}\n\n{items}{len(texts) + 1}."


def fit(config: ConfigDict, drawn: Sequence[Sequence[Example]], model: Any) -> list[Fitted]:
    """The token ids of each list, with as many of its examples as the model has room for.

    Raises:
        InputError: there is no room even without examples.
    """
    from cai_jax.text import few_shots

    room = model.config.max_positions - config.max_prompt_tokens
    fitted = few_shots.fit(
        [lambda texts: lay_out(config, texts)] * len(drawn),
        [[example.text for example in shots] for shots in drawn],
        model.tokenizer.encode_prompts,
        room,
    )
    there = [prompt for prompt in fitted if prompt is not None]
    if len(there) < len(drawn):
        raise InputError(
            f"max_prompt_tokens: the model's {model.config.max_positions} positions less "
            f"{config.max_prompt_tokens} leave no room for the header; lower it"
        )
    return there


def cut(config: ConfigDict, text: str) -> str:
    """The item itself, on one line: what the prompt will say."""
    from cai_jax.text.dialogue import cut_at_stop

    item = text.split("\n")[0] if config.format == "numbered" else cut_at_stop(text)
    return " ".join(item.split())


class Sieve:
    """What a new text must pass; knows all texts before it."""

    def __init__(self, config: ConfigDict, examples: Sequence[Example]):
        from cai_jax.text.duplicates import Collection

        self._min_words = config.min_words
        texts = [example.text for example in examples]
        self._known = Collection(config.ngram, config.similarity, expected=texts)
        self._num_examples = len(examples)
        for example in examples:
            self._known.add(example.id, example.text)

    def keep(self, id: str, text: str) -> None:
        """Holds later texts against this one too."""
        self._known.add(id, text)

    def reason_to_drop(self, text: str, finish_reason: str) -> tuple[str, Any]:
        """One of REASONS and the `duplicates.Match` behind it, if any; ("", None): keep it."""
        from cai_jax.text.duplicates import normalise

        if finish_reason == "length":
            return "unfinished", None
        if len(normalise(text).split()) < self._min_words:
            return "too_short", None
        match = self._known.find(text)
        if match is None:
            return "", None
        of = "human" if match.number < self._num_examples else "generated"
        return f"{'repeats' if match.equal else 'near'}_{of}", match


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, tokens (generated, at most) and FLOPs, if no text is dropped: else up to
    `attempts_at_most` / `records` times as many."""
    there, tokens = planning.prompts_taken(planned["prompts"], 0)
    read = config.num_prompts * (
        config.num_few_shots * tokens / max(there, 1) + len(config.header) / 4
    )
    written = config.num_prompts * config.max_prompt_tokens
    return {
        "records": config.num_prompts,
        "tokens": written,
        "flops": planning.forward_flops(planned["model"], read + written),
        "attempts_at_most": config.max_attempts or 4 * config.num_prompts,
        "prompt_tokens": round(min(config.num_prompts * tokens / max(there, 1), written)),
    }
