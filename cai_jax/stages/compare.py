"""Two responses to each prompt, for the feedback model to choose from (paper section 4.1)."""

from __future__ import annotations

import functools
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.generation import planning
from cai_jax.generation.room import ON_LONG, keep_fitting

if typing.TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Pair, Prompt
    from cai_jax.generation.settings import Completion
    from cai_jax.models.language_model import LanguageModel

# Prompts worked on at a time; what is finished of them outlasts the process.
BLOCK = 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.temperature = 1.0
    config.top_k = 0
    config.top_p = 1.0
    config.dialogue_format = "plain"  # "\n\nHuman: ..."; or "chat", the model's own template
    config.max_response_tokens = 256
    config.max_tries = 4  # samples of the second response, until it differs from the first
    config.limit = 0  # at most so many prompts of each file; 0: all
    config.on_long = "refuse"  # prompts that the model's positions do not hold: "refuse" or "drop"
    config.batch_size = 128
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes pairs.jsonl.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`, and `prompts` (a file or a list of them).
        folder: the step's own, empty.

    Returns:
        Counts: records (pairs), tokens (generated); too_long (prompts left out); identical (prompts
        left out because every try gave the same text: there is nothing to compare); resampled
        (pairs that took more than one try); truncated_responses (ended by their maximum of tokens)
        and empty_responses, of those written.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    from cai_jax import checkpoints
    from cai_jax.core import keys, mesh
    from cai_jax.core.blocks import kept_in_blocks
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import Pair, read_records, write_file, write_records

    check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    prompts = readers.read_all_prompts(inputs["prompts"], config.limit, config.fields, bad)
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    model = checkpoints.in_format(model, config.dialogue_format)
    fitting = encode_fitting(config, prompts, model)
    counts = Counter(identical=0, tokens=0, too_long=len(prompts) - len(fitting), resampled=0)
    counts.update(bad.report(folder))
    with Progress(f"{folder.name} (compare)", 2 * len(fitting), "responses") as progress:
        key = keys.base_key(config.seed, folder.name)
        make = functools.partial(make_pairs, Job(config, model, key, device_mesh, progress, counts))
        read = functools.partial(read_records, record_type=Pair)
        pairs = kept_in_blocks(folder, counts, fitting, BLOCK, make, write_file, read)
    write_records(folder / "pairs.jsonl", pairs)
    return {"records": len(pairs), **counts}


class Job(typing.NamedTuple):
    """What everything that is sampled in the step has in common; `counts` are added to."""

    config: ConfigDict
    model: LanguageModel
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]


def make_pairs(job: Job, fitting: Sequence[tuple[Prompt, list[int]]]) -> list[Pair]:
    """The pairs of some prompts, in their order, without those whose tries were all equal."""
    from cai_jax.data.schema import Pair
    from cai_jax.text.dialogue import cut_at_stop

    firsts = sample(job, fitting, 0)
    seconds: dict[int, Completion] = {}
    waiting = list(range(len(fitting)))
    for number in range(1, job.config.max_tries + 1):
        tries = sample(job, [fitting[i] for i in waiting], number)
        for i, second in zip(waiting, tries, strict=True):
            if cut_at_stop(second.text) != cut_at_stop(firsts[i].text):
                seconds[i] = second
                job.counts["resampled"] += number > 1
        waiting = [i for i in waiting if i not in seconds]
        if not waiting:
            break
    job.counts["identical"] += len(waiting)
    pairs = []
    for i, second in sorted(seconds.items()):
        prompt, _ = fitting[i]
        texts = [cut_at_stop(completion.text) for completion in (firsts[i], second)]
        pairs.append(Pair(prompt.id, prompt.dialogue, texts[0], texts[1], prompt.tags))
        ends = [completion.finish_reason for completion in (firsts[i], second)]
        job.counts["truncated_responses"] += ends.count("length")
        job.counts["empty_responses"] += texts.count("")
    return pairs


def sample(job: Job, wanted: Sequence[tuple[Prompt, list[int]]], number: int) -> list[Completion]:
    """A response to each prompt: number 0 is the first one, 1 and on are tries at the second."""
    import jax

    from cai_jax.generation.generate import generate

    ids = [prompt.id for prompt, _ in wanted]
    completions = generate(
        job.model,
        [encoded for _, encoded in wanted],
        settings(job.config),
        (jax.random.fold_in(job.key, number), ids),
        batch_size=job.config.batch_size,
        names=[f"prompt {id}" for id in ids],
        mesh=job.mesh,
        progress=job.progress,
    )
    job.counts["tokens"] += sum(len(completion.token_ids) for completion in completions)
    return completions


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Refuses what `run` would refuse of the config.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    from cai_jax.text.formats import dialogue_format

    dialogue_format(config.dialogue_format)
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected 'refuse' or 'drop', found {config.on_long!r}")
    if config.limit < 0:
        raise InputError(f"limit: expected 0 (all) or more, found {config.limit}")
    if config.max_tries < 1:
        raise InputError(f"max_tries: expected at least 1, found {config.max_tries}")
    settings(config)


def settings(config: ConfigDict) -> Any:
    """How responses are sampled."""
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS

    return SamplingSettings(
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=STOPS,
    )


def encode_fitting(
    config: ConfigDict, prompts: Sequence[Prompt], model: LanguageModel
) -> list[tuple[Prompt, list[int]]]:
    """The prompts that the model's positions hold together with a response, and their token ids.

    Raises:
        InputError: on_long is "refuse" and some do not fit; or none does.
    """
    from cai_jax.text.formats import dialogue_format

    asked = dialogue_format(config.dialogue_format)
    encoded = model.tokenizer.encode_prompts(asked.dialogue(prompt.dialogue) for prompt in prompts)
    positions = model.config.max_positions
    fitting = keep_fitting(
        "prompts",
        [prompt.id for prompt in prompts],
        [len(ids) for ids in encoded],
        positions - config.max_response_tokens,
        config.on_long,
        f"the model has {positions} positions, less max_response_tokens; lower these",
    )
    return [(prompts[i], encoded[i]) for i in fitting]


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs, tokens (generated, at most, if no second response is sampled again) and FLOPs."""
    records, prompt_tokens = planning.prompts_taken(planned["prompts"], config.limit)
    written = 2 * records * config.max_response_tokens
    return {
        "records": records,
        "tokens": written,
        "flops": planning.forward_flops(planned["model"], 2 * prompt_tokens + written),
        "prompt_tokens": round(prompt_tokens),
    }
