"""Log-probabilities of given completions, without a [B, T, V] array.

A prefix that prompts share is computed once: a few-shot, a dialogue that is asked about in many
ways, a prompt with several completions (`reuse.py`). Hidden states become log-probabilities a chunk
of positions at a time, and those of the completions alone.

Axes: B rows, T tokens of what is read behind the shared prefix, R of them that are scored.
"""

from __future__ import annotations

import functools
import typing
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cai_jax.generation import batching, reuse
from cai_jax.generation.placing import rows_sharding
from cai_jax.generation.prefixes import Trie, build_trie
from cai_jax.generation.settings import Stats
from cai_jax.models import placing, transformer

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jax.sharding import Mesh

    from cai_jax.models.cache import Cache
    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

CHUNK_LOGITS = 1 << 22  # logits held at a time: 16 MiB in float32
PROGRAM_FLOPS = 1e11  # that a program must save; it is kept, so this is not all that it costs
SMALLEST_COMPLETION = 4  # the bucket of short completions


def score(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int = 64,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> list[list[np.ndarray]]:
    """Log-probabilities of completions given their prompts, under the model at temperature 1.

    Args:
        model: on the devices of `mesh`.
        prompts: token ids; an empty one is given the token that begins a text.
        completions: of each prompt, any number of them, of any length.
        batch_size: rows computed at a time.
        names: of the prompts in error messages.
        mesh: splits the rows of a batch; None: one device.
        stats: counts are added here. The last token of a prompt counts once, though the pass over
            each of its completions begins with it.
        progress: told of each batch of distinct prompts.

    Returns:
        For each prompt and completion a float32 array: one log-probability (nats) a token.

    Raises:
        InputError: a prompt and a completion need more positions than the model has, or hold
            tokens that it does not know, or it is a preference model.
    """
    longest = [max((len(text) for text in texts), default=0) for texts in completions]
    prompts = batching.checked_prompts(model, prompts, longest, "tokens of completion", names)
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray] = {}
    for number, (prompt, texts) in enumerate(zip(prompts, completions)):
        for index, text in enumerate(texts):
            name = f"{names[number] if names else f'prompt {number}'}: completion {index}"
            batching.check_tokens(text, model.config.vocab_size, name)
            found[tuple(prompt), tuple(text)] = np.zeros(0, np.float32)

    pairs = [pair for pair in found if pair[1]]
    left = Counter(prompt for prompt, _ in pairs)  # completions that are not scored yet
    with batching.measured(stats) as stats:
        if progress is not None:
            progress.advance(len({tuple(prompt) for prompt in prompts} - set(left)))
        # The last token of a prompt predicts the first of a completion, and is read with it.
        heads = [prompt[:-1] for prompt, _ in pairs]
        tails = [[prompt[-1], *text[:-1]] for prompt, text in pairs]
        targets = [text for _, text in pairs]
        trie = build_trie(heads)
        for batch, arrays in _read_all(
            model, trie, heads, tails, targets, batch_size, "all", mesh, stats
        ):
            for number, array in zip(batch, arrays):
                found[pairs[number]] = array[len(array) - len(targets[number]) :]
            left.subtract(pairs[number][0] for number in batch)
            done = [prompt for prompt in {pairs[number][0] for number in batch} if not left[prompt]]
            if progress is not None and done:
                progress.advance(len(done))
        stats.forwarded_prompt_tokens += reuse.forwarded(trie, heads) + len(left)
        stats.prompt_tokens += sum(
            len(prompt) * len(texts) for prompt, texts in zip(prompts, completions)
        )
    return [
        [found[tuple(prompt), tuple(text)] for text in texts]
        for prompt, texts in zip(prompts, completions)
    ]


def choice_logprobs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    names: Sequence[str] | None = None,
    mesh: Mesh | None = None,
    stats: Stats | None = None,
    progress: batching.Progress | None = None,
) -> np.ndarray:
    """Log-probabilities [n, k] (nats) of k continuations after each of n prompts.

    This is how a feedback model answers a multiple-choice question (paper, section 4.1): `choices`
    are the tokens of " (A)" and " (B)". Choices of one token each are read from one position, in
    one pass; longer ones go through `score`. See there for the other arguments.

    Records keep what the model said of each choice among all tokens, so that the sum over the
    vocabulary is needed too, and not the two columns of the unembedding alone: it is taken of the
    last position of each text, as many texts at a time as `CHUNK_LOGITS` allows.
    """
    if any(len(choice) != 1 for choice in choices):
        scored = score(
            model,
            prompts,
            [choices] * len(prompts),
            batch_size=batch_size,
            names=names,
            mesh=mesh,
            stats=stats,
            progress=progress,
        )
        sums = [[array.sum(dtype=np.float64) for array in arrays] for arrays in scored]
        return np.asarray(sums, np.float32).reshape(len(prompts), len(choices))

    prompts = batching.checked_prompts(
        model, prompts, [1] * len(prompts), "token of the choice", names
    )
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(tuple(prompt), []).append(number)
    distinct = list(numbers)
    result = np.zeros((len(prompts), len(choices)), np.float32)
    with batching.measured(stats) as stats:
        heads, tails = [prompt[:-1] for prompt in distinct], [prompt[-1:] for prompt in distinct]
        targets = [[choice[0] for choice in choices]] * len(distinct)
        trie = build_trie(heads)
        for batch, arrays in _read_all(
            model, trie, heads, tails, targets, batch_size, "last", mesh, stats
        ):
            same = [numbers[distinct[index]] for index in batch]
            for places, row in zip(same, arrays):
                result[places] = row
            if progress is not None:
                progress.advance(sum(map(len, same)))
        stats.prompt_tokens += sum(map(len, prompts))
        stats.forwarded_prompt_tokens += reuse.forwarded(trie, heads) + len(distinct)
    return result


def token_logprobs(
    params: transformer.Params, config: ModelConfig, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """The log-probability (float32) of each target [B, T] from hidden states [B, T, D].

    Works on as many positions at a time as `CHUNK_LOGITS` allows.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _logprobs(params, config, flat, targets.reshape(-1, 1)).reshape(targets.shape)


def _logprobs(
    params: transformer.Params, config: ModelConfig, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """The log-probabilities of targets [n, k] from hidden states [n, D], chunk by chunk."""
    count = len(hidden)
    chunk = min(max(CHUNK_LOGITS // config.vocab_size, 1), count)
    padding = -count % chunk
    states = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    wanted = jnp.pad(targets, ((0, padding), (0, 0))).reshape(-1, chunk, targets.shape[-1])

    def read(block):
        logits = transformer.logits(params, config, block[0])
        chosen = jnp.take_along_axis(logits, block[1], axis=1)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    return lax.map(read, (states, wanted)).reshape(-1, targets.shape[-1])[:count]


Where = typing.Literal["all", "last"]
"""Targets are the tokens that follow the last positions, or they all may follow the last one."""


def _read_all(
    model: LanguageModel,
    trie: Trie,
    heads: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_size: int,
    where: Where,
    mesh: Mesh | None,
    stats: Stats,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(texts, log-probabilities [B, R] of their targets, on the right) of all texts.

    Args:
        model: on the devices of `mesh`.
        trie: of the heads.
        heads: what texts may share.
        tails: what follows it; never empty.
        targets: of each text, tokens.
        batch_size: rows computed at a time.
        where: the targets are.
        mesh: splits the rows of a batch.
        stats: `slots` is set here.
    """
    place = functools.partial(placing.place, sharding=rows_sharding(mesh))
    texts = [[*head, *tail] for head, tail in zip(heads, tails)]
    rows = batching.row_count(len(texts), batch_size, mesh)
    stats.slots = max(stats.slots, rows)
    longest_of = [len(text) - trie.start(number) - 1 for number, text in enumerate(texts)]
    grid = _grid(longest_of, _parameters(model.params))
    for batch in reuse.walk(model, trie, texts, rows, batch_size, mesh):
        rest = [texts[number][trie.start(number) :] for number in batch.texts]
        wanted = [targets[number] for number in batch.texts]
        width = longest = max(map(len, wanted))
        if where == "all":
            width = batching.bucket(longest, SMALLEST_COMPLETION)
        # Wide enough for the targets; the last token of a prompt is one more than its segments.
        length = max(width, 1 + grid(max(map(len, rest)) - 1))
        tokens, mask = batching.right_aligned(rest, rows, length)
        aligned, _ = batching.right_aligned(wanted, rows, width)
        arrays = (place(array) for array in (batch.source, tokens, mask, aligned))
        read = _read(model.params, model.config, batch.cache, *arrays, where)
        yield batch.texts, placing.fetch(read)[: len(rest)]


def _coarse(length: int) -> int:
    return batching.coarse_bucket(length, 32)


def _fine(length: int) -> int:
    """The next of 0, 32, 40, 48, 56, 64, 80, ...: four to an octave."""
    step = max(1 << max(length - 1, 0).bit_length(), 64) // 8
    return max(-(-length // step) * step, 32) if length > 0 else 0


def _grid(lengths: Sequence[int], parameters: int) -> Callable[[int], int]:
    """What lengths are rounded up to: finer where that saves more than its programs cost."""
    saved = 2 * parameters * sum(_coarse(length) - _fine(length) for length in lengths)
    programs = len(set(map(_fine, lengths)) - set(map(_coarse, lengths)))
    return _fine if saved > programs * PROGRAM_FLOPS else _coarse


def _parameters(params: transformer.Params) -> int:
    return sum(array.size for array in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames=("config", "where"))
def _read(
    params: transformer.Params,
    config: ModelConfig,
    cache: Cache | None,
    source: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    targets: jax.Array,
    where: Where,
) -> jax.Array:
    """Log-probabilities [B, R] of targets after texts [B, T] that continue cache rows `source`."""
    if cache is None:
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        hidden, _ = transformer.forward(params, config, tokens, positions=positions, segments=mask)
    else:
        hidden, _ = reuse.continued(params, config, cache, source, tokens, mask)
    if where == "all":
        return token_logprobs(params, config, hidden[:, -targets.shape[1] :], targets)
    return _logprobs(params, config, hidden[:, -1], targets)
