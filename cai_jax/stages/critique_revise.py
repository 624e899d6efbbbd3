"""Critiques and revisions (paper sections 3.1, 3.2, 3.5), and plain samples.

A helpful-only model answers a prompt; then, round by round, it criticises its last answer under a
principle drawn for that round, and revises it. Without rounds there are the answers alone: the
helpful samples that SL-CAI learns besides.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import typing
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cai_jax.data import readers
from cai_jax.errors import InputError
from cai_jax.generation import planning
from cai_jax.generation.room import ON_LONG, keep_fitting

if typing.TYPE_CHECKING:
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from cai_jax.core.progress import Progress
    from cai_jax.data.schema import Chain, Prompt
    from cai_jax.generation.generate import Ask
    from cai_jax.generation.settings import Completion
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.constitution import Constitution, Principle
    from cai_jax.text.few_shots import LayOut

    Keys = Mapping[tuple[int, int], np.ndarray]  # by (round, what is drawn)

# What is drawn in a round, each with keys of its own; the response is the revision of round 0.
PRINCIPLE, CRITIQUE, REVISION = range(3)

# Records worked on at a time: their prompts lie in the host's memory together.
BLOCK = 4096


def default_config() -> ConfigDict:
    """Every parameter of the step."""
    config = ConfigDict()
    config.num_rounds = 4  # critiques and revisions of each response; 0: the responses alone
    config.critique = True  # False: revisions without critiques, as in figure 7 of the paper
    config.principles = ()  # ids to draw from; (): all of the constitution's
    config.num_principles = 0  # of these so many, drawn by the seed; 0: all
    config.principles_seed = -1  # of that draw; -1: the step's own
    config.num_few_shots = 2  # at most so many of the constitution's before critique and revision
    # "\n\nHuman: ..."; or "chat", the model's own template, where requests are the human's turns.
    config.dialogue_format = "plain"
    config.temperature = 1.0
    config.top_k = 0
    config.top_p = 1.0
    config.max_response_tokens = 256
    config.max_critique_tokens = 256
    config.max_revision_tokens = 256
    config.limit = 0  # at most so many prompts of each file; 0: all
    config.on_long = "refuse"  # prompts that the model's positions may not hold: "refuse" or "drop"
    config.batch_size = 128
    config.fields = readers.default_fields()  # what the prompts' files call their columns
    config.data = readers.default_data()
    return config


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes chains.jsonl, and the constitution beside it.

    Args:
        config: as `default_config`, with `seed` and `mesh`.
        inputs: `model`, `prompts` (a file or a list of them), and `constitution` where there are
            rounds.
        folder: the step's own, empty.

    Returns:
        Counts: records (chains), tokens (generated), revisions; too_long (prompts left out);
        neutralised (chains of plain text in which a line could have passed for a turn, and was
        changed in the prompts); few_shots_dropped (of critique and revision prompts, for want of
        room);
        truncated_responses, ... (ended by their maximum of tokens); empty_responses, ... (an empty
        revision is replaced by the text that it should have revised); prompt_tokens, and
        forwarded_prompt_tokens, those of them that the model read and had not read before. The ids
        of the `principles` that could be drawn.

    Raises:
        InputError: as `check`, and for inputs that cannot be read or do not fit.
    """
    from cai_jax import checkpoints
    from cai_jax.core import artifact, keys, mesh
    from cai_jax.core.blocks import kept_in_blocks
    from cai_jax.core.progress import Progress
    from cai_jax.data.bad_records import BadRecords
    from cai_jax.data.schema import Chain, read_records, write_file, write_records
    from cai_jax.text.markers import has_labels

    constitution = check(config, inputs)
    bad = BadRecords(config.data.on_bad_record)
    prompts = readers.read_all_prompts(inputs["prompts"], config.limit, config.fields, bad)
    device_mesh = mesh.make_mesh(config.mesh)
    model = checkpoints.load_model(inputs["model"], device_mesh)
    model = checkpoints.in_format(model, config.dialogue_format)
    fitting = prompts_that_fit(config, prompts, constitution, model)
    counts = Counter(too_long=len(prompts) - len(fitting), few_shots_dropped=0, tokens=0)
    counts.update(bad.report(folder))
    total = len(fitting) * (1 + config.num_rounds * (2 if config.critique else 1))
    with Progress(f"{folder.name} (critique_revise)", total, "texts") as progress:
        key = keys.base_key(config.seed, folder.name)
        job = Job(config, model, constitution, key, device_mesh, progress, counts)
        read = functools.partial(read_records, record_type=Chain)
        make = functools.partial(make_chains, job)
        chains = kept_in_blocks(folder, counts, fitting, BLOCK, make, write_file, read)
    write_records(folder / "chains.jsonl", chains)
    if constitution is not None:
        artifact.write_json(folder / "constitution.json", dataclasses.asdict(constitution))
    revisions = sum(len(chain.rounds) for chain in chains)
    if config.dialogue_format == "plain":
        counts["neutralised"] = sum(bool(c.rounds) and has_labels(texts_of(c)) for c in chains)
    taken = [principle.id for principle in constitution.principles] if constitution else []
    return {"records": len(chains), "revisions": revisions, **counts, "principles": taken}


def check(config: ConfigDict, inputs: Mapping[str, Any]) -> Constitution | None:
    """Refuses what `run` would refuse of the config and the constitution; gives the latter.

    Returns:
        The constitution with the principles alone that the config takes; None: there is none.

    Raises:
        InputError: naming the parameter, what was expected and found.
    """
    from cai_jax import checkpoints
    from cai_jax.text.constitution import load_constitution
    from cai_jax.text.formats import dialogue_format, example_turns

    dialogue_format(config.dialogue_format)
    if config.on_long not in ON_LONG:
        raise InputError(f"on_long: expected 'refuse' or 'drop', found {config.on_long!r}")
    lowest = {"num_rounds": 0, "num_few_shots": 0, "limit": 0, "principles_seed": -1}
    for name, least in lowest.items():
        if config[name] < least:
            raise InputError(f"{name}: expected {least} or more, found {config[name]}")
    for what in ("response", "critique", "revision"):
        settings(config, what)
    if config.num_rounds and "constitution" not in inputs:
        raise InputError("inputs.constitution: needed for num_rounds > 0, found none")
    if "constitution" not in inputs:
        return None
    constitution = load_constitution(checkpoints.resolve(inputs["constitution"]))
    for text in constitution.critique_few_shots[: config.num_few_shots]:
        if config.dialogue_format == "chat":
            example_turns(text)
    seed = config.seed if config.principles_seed < 0 else config.principles_seed
    return constitution.subset(config.principles).drawn(config.num_principles, seed)


def settings(config: ConfigDict, what: str) -> Any:
    """How a "response", "critique" or "revision" is sampled."""
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import STOPS

    return SamplingSettings(
        max_new_tokens=config[f"max_{what}_tokens"],
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=STOPS,
    )


class Job(typing.NamedTuple):
    """What everything that is sampled in the step has in common; `counts` are added to."""

    config: ConfigDict
    model: LanguageModel
    constitution: Constitution | None
    key: jax.Array
    mesh: Mesh
    progress: Progress
    counts: Counter[str]


def make_chains(job: Job, prompts: Sequence[Prompt]) -> list[Chain]:
    """The chains of some prompts, in their order, without those that do not fit (too_long).

    A chain keeps its place in the model's memory: what it asks next mostly begins with what was
    read and written before, of which nothing is read again.
    """
    from cai_jax.generation.generate import converse
    from cai_jax.generation.settings import Stats

    rounds = range(1, job.config.num_rounds + 1)
    drawn = zip(*(draw_principles(job, number, prompts) for number in rounds))
    keys = draw_keys(job, [prompt.id for prompt in prompts])
    asked = ("critique", "revision") if job.config.critique else ("revision",)
    for what in ("response", *(asked if rounds else ())):
        job.counts.update({f"truncated_{what}s": 0, f"empty_{what}s": 0})
    stats = Stats()
    chains = converse(
        job.model,
        (
            make_chain(job, prompt, of_rounds, of_prompt)
            for prompt, of_rounds, of_prompt in zip(
                prompts, drawn if rounds else [()] * len(prompts), keys
            )
        ),
        len(prompts),
        batch_size=job.config.batch_size,
        mesh=job.mesh,
        stats=stats,
        progress=job.progress,
    )
    for name in ("prompt_tokens", "forwarded_prompt_tokens"):
        job.counts[name] += getattr(stats, name)
    return [chain for chain in chains if chain is not None]


def make_chain(
    job: Job, prompt: Prompt, principles: Sequence[Principle], keys: Keys
) -> Generator[Ask, Completion, Chain | None]:
    """Asks for all texts of a chain, one after the other; None: one of its prompts is too long."""
    from cai_jax.data.schema import Chain, Round
    from cai_jax.text.few_shots import without_critiques
    from cai_jax.text.formats import dialogue_format

    asked = dialogue_format(job.config.dialogue_format)
    few_shots: tuple[str, ...] = ()
    if principles:
        assert job.constitution is not None
        few_shots = tuple(job.constitution.critique_few_shots[: job.config.num_few_shots])
        if not job.config.critique:
            few_shots = tuple(without_critiques(text) for text in few_shots)

    response = yield from ask(
        job, "response", prompt.id, keys[0, REVISION], lambda shots: asked.dialogue(prompt.dialogue)
    )
    if response is None:
        return None
    chain = Chain(prompt.id, prompt.dialogue, response)
    for number, principle in enumerate(principles, 1):
        text = last_text(chain)
        critique = None
        if job.config.critique:
            critique = yield from ask(
                job,
                "critique",
                prompt.id,
                keys[number, CRITIQUE],
                lambda shots: asked.critique(prompt.dialogue, text, principle, shots),  # noqa: B023
                few_shots,
            )
            if critique is None:
                return None

        def revised(shots, text=text, critique=critique, principle=principle):
            if critique is None:
                return asked.direct_revision(prompt.dialogue, text, principle, shots)
            return asked.revision(prompt.dialogue, text, critique, principle, shots)

        revision = yield from ask(
            job, "revision", prompt.id, keys[number, REVISION], revised, few_shots
        )
        if revision is None:
            return None
        done = Round(principle.id, critique or "", revision or text)
        chain = dataclasses.replace(chain, rounds=(*chain.rounds, done))
    return chain


def texts_of(chain: Chain) -> list[str]:
    """All that the human and the model wrote."""
    written = [text for step in chain.rounds for text in (step.critique, step.revision)]
    return [*(turn.text for turn in chain.dialogue), chain.response, *written]


def last_text(chain: Chain) -> str:
    """What the next round criticises: the last revision, or the response."""
    return chain.rounds[-1].revision if chain.rounds else chain.response


def draw_principles(
    job: Job, number: int, chains: Sequence[Chain] | Sequence[Prompt]
) -> list[Principle]:
    """A principle for each chain in this round, by the id of its prompt alone."""
    import jax

    from cai_jax.generation.batching import record_keys

    assert job.constitution is not None
    choice = job.constitution.principles
    key = jax.random.fold_in(job.key, 3 * number + PRINCIPLE)
    bits = record_keys(key, [chain.id for chain in chains])
    return [random.Random(words.tobytes()).choice(choice) for words in bits]


def draw_keys(job: Job, ids: Sequence[str]) -> list[Keys]:
    """The random bits of each record for what is drawn in each round."""
    import jax

    from cai_jax.generation.generate import key_bits

    drawn = [(0, REVISION)]
    for number in range(1, job.config.num_rounds + 1):
        drawn += [(number, CRITIQUE), (number, REVISION)]
    bits = [
        key_bits((jax.random.fold_in(job.key, 3 * number + what), ids), len(ids))
        for number, what in drawn
    ]
    return [dict(zip(drawn, of_record)) for of_record in zip(*bits)]


def ask(
    job: Job,
    what: str,
    name: str,
    key: np.ndarray,
    lay_out: LayOut,
    few_shots: Sequence[str] = (),
) -> Generator[Ask, Completion, str | None]:
    """Asks for a "response", "critique" or "revision"; None where its prompt does not fit."""
    from cai_jax.generation.generate import Ask
    from cai_jax.text.dialogue import cut_at_stop
    from cai_jax.text.few_shots import fit

    sampling = settings(job.config, what)
    room = job.model.config.max_positions - sampling.max_new_tokens
    [prompt] = fit([lay_out], [few_shots], job.model.tokenizer.encode_prompts, room)
    if prompt is None:
        job.counts["too_long"] += 1
        return None
    completion = yield Ask(prompt.ids, sampling, key, name)
    text = cut_at_stop(completion.text)
    job.counts["tokens"] += len(completion.token_ids)
    job.counts["few_shots_dropped"] += prompt.dropped
    job.counts[f"truncated_{what}s"] += completion.finish_reason == "length"
    job.counts[f"empty_{what}s"] += text == ""
    return text


def prompts_that_fit(
    config: ConfigDict,
    prompts: Sequence[Prompt],
    constitution: Constitution | None,
    model: LanguageModel,
) -> list[Prompt]:
    """The prompts whose chains fit into the model's positions, whatever it writes (no few-shots).

    Raises:
        InputError: on_long is "refuse" and some do not fit; or none does.
    """
    from cai_jax.text.formats import Turn, dialogue_format

    asked = dialogue_format(config.dialogue_format)
    encode = model.tokenizer.encode_prompts
    after = config.max_response_tokens
    if config.num_rounds:
        assert constitution is not None
        principles = constitution.principles
        critique = config.max_critique_tokens if config.critique else 0
        # A chat template may refuse what no human begins, and texts that are empty.
        chat = config.dialogue_format == "chat"
        begun = (Turn("human", "a"),) if chat else ()
        text = "a" if chat else ""
        if config.critique:
            frames = [asked.revision(begun, text, text, p) for p in principles]
        else:
            frames = [asked.direct_revision(begun, text, p) for p in principles]
        after = max(config.max_response_tokens, config.max_revision_tokens)
        after += max(map(len, encode(frames))) + critique + config.max_revision_tokens
    positions = model.config.max_positions
    fitting = keep_fitting(
        "prompts",
        [prompt.id for prompt in prompts],
        [len(ids) for ids in encode(asked.dialogue(p.dialogue) for p in prompts)],
        positions - after,
        config.on_long,
        f"a chain may need {after} of the model's {positions} positions after its prompt; "
        "lower max_response_tokens, max_critique_tokens or max_revision_tokens",
    )
    return [prompts[i] for i in fitting]


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Chains, tokens (generated, at most), revisions and FLOPs, if every few-shot fits."""
    records, prompt_tokens = planning.prompts_taken(planned["prompts"], config.limit)
    critique = config.max_critique_tokens if config.critique else 0
    written = config.max_response_tokens
    read = prompt_tokens
    constitution = planned.get("constitution", {})
    shots = planning.few_shot_tokens(constitution, "critique", config.num_few_shots)
    for _ in range(config.num_rounds):
        # The critique reads the dialogue and the answer; the revision reads the critique besides.
        asked = 2 if config.critique else 1
        read += asked * (prompt_tokens + records * (config.max_revision_tokens + shots))
        read += records * critique
        written += critique + config.max_revision_tokens
    return {
        "records": records,
        "tokens": records * written,
        "flops": planning.forward_flops(planned["model"], read + records * written),
        "revisions": records * config.num_rounds,
        "prompt_tokens": round(prompt_tokens),
    }
