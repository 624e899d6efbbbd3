"""The host's half of the slot engine: sessions take slots, and go on in them.

A session asks for completions one after the other, as a generator that yields requests; what it
asks next usually begins with what its slot holds, of which nothing is computed again. As soon as
enough slots are free they take the next sessions, so that a long completion holds back nobody.
Which slot a request has, and when, changes nothing of what it gets.

Axes: B slots, F requests placed at a time, T tokens, C tokens of a chunk, E stop tokens.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cai_jax import hosts
from cai_jax.generation import batching, slots
from cai_jax.generation.distribution import Filter, mode_of
from cai_jax.generation.placing import rows_sharding
from cai_jax.generation.seating import Held, Place, Waiting, next_places, shared_beginning
from cai_jax.generation.settings import Completion, SamplingSettings, Stats
from cai_jax.generation.sizing import SlotPlan
from cai_jax.generation.slots import NO_TOKEN, Slots, chunk_steps
from cai_jax.generation.stopping import find_stop, stop_tokens
from cai_jax.models import attention_kernels, placing, transformer

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.config import ModelConfig
    from cai_jax.models.language_model import LanguageModel

SMALLEST_SPAN = 32  # columns of the smallest slot
AHEAD = 64  # tokens of a completion for which there are columns at once
PIECE = 1024  # tokens of a prompt that are read at once
TOGETHER = 2**16  # of all prompts, where a kernel attends to the first piece and to no other
WEIGHTS_SHARE = 0.8  # of a device's memory, at most; the rest is for keys and values
ROUND = 128  # columns of a trunk are a multiple
MODES = ("greedy", "sample", "filter")


class Request(NamedTuple):
    """A completion that is wanted."""

    prompt: Sequence[int]  # not empty, and with room for what follows it
    settings: SamplingSettings
    key_bits: np.ndarray  # [W] uint32


Session = Generator[Request, Completion, Any]


@dataclasses.dataclass
class Seat:
    """What a slot's request has so far."""

    session: int
    request: Request
    ends: list[int]  # the tokens that end it
    tokens: list[int]
    logprobs: list[float]
    tempered: list[float]


def serve(
    model: LanguageModel,
    sessions: Iterable[Session],
    plan: SlotPlan,
    mesh: Mesh | None,
    stats: Stats,
    progress: batching.Progress | None = None,
) -> Iterator[tuple[int, Any]]:
    """(the session's number, what it returned), as they end.

    Args:
        model: on the devices of `mesh`.
        sessions: begun in their order, as slots become free.
        plan: the slots, from `sizing.plan_slots`.
        mesh: splits the slots; None: one device.
        stats: counts are added here.
        progress: told of each completion.
    """
    stats.slots = max(stats.slots, plan.slots)
    engine = Engine(model, plan, mesh, stats)
    queue = enumerate(sessions)
    running: dict[int, Session] = {}
    waiting: list[Waiting] = []
    requests: dict[int, Request] = {}
    coming: collections.deque[tuple[int, Session]] = collections.deque()  # of the queue, the next

    def ask(number: int, request: Request, slot: int | None) -> None:
        requests[number] = request
        waiting.append(Waiting(number, np.asarray(request.prompt[:-1], np.int32), slot))

    def together() -> int:
        """How many are placed at a time."""
        if plan.again:
            return min(plan.refill, -(-len(running) // 4))
        # The last ones wait for nobody.
        return min(plan.refill, len(coming) + len(waiting)) or plan.refill

    while True:
        while len(running) < plan.slots:
            coming.extend(itertools.islice(queue, 0 if coming else 1))
            if not coming:
                break
            number, session = coming.popleft()
            try:
                request = next(session)
            except StopIteration as over:
                yield number, over.value
                continue
            running[number] = session
            ask(number, request, None)
        if not running:
            return
        coming.extend(itertools.islice(queue, plan.refill - len(coming)))
        if waiting and (len(waiting) >= together() or not engine.seats):
            engine.place(waiting, requests)
            waiting.clear()
        hosts.stop_if_asked()
        for slot, seat, completion in engine.step(together() - len(waiting)):
            if progress is not None:
                progress.advance(1)
            try:
                request = running[seat.session].send(completion)
            except StopIteration as over:
                del running[seat.session]
                yield seat.session, over.value
            else:
                ask(seat.session, request, slot)


class Engine:
    """Slots on the devices, and what the host knows of them."""

    def __init__(self, model: LanguageModel, plan: SlotPlan, mesh: Mesh | None, stats: Stats):
        """Slots without requests, and without memory until the first is placed."""
        self.plan, self.mesh, self.stats = plan, mesh, stats
        self.model = by_layer(model, mesh)
        self.seats: dict[int, Seat] = {}  # by slot
        self.held = Held(plan.slots)
        self.span = 0
        self.past: Any = None
        self.trunk: Any = None  # the keys and values of `held.trunk`
        self.slots = no_slots(plan.slots, 8)
        self.ends: dict[tuple[str, ...], list[int]] = {}  # of stop strings, the tokens
        self.steps = chunk_steps()
        self.put = functools.partial(placing.place, sharding=rows_sharding(mesh))
        self.piece = piece_tokens(model.config, plan.refill)

    def place(self, waiting: Sequence[Waiting], requests: dict[int, Request]) -> None:
        """Places requests in slots, with all that their prompts have in front of the last token."""
        going = {item.slot for item in waiting}
        left = list(waiting)
        self._grow([item.head for item in waiting])
        self._fit(
            [
                len(item.head)
                + 1
                - self.held.begins(item.head)
                + min(requests[item.session].settings.max_new_tokens, AHEAD)
                for item in waiting
            ]
        )
        while left:
            free = [
                slot
                for slot in range(self.plan.slots)
                if slot not in self.seats and slot not in going
            ]
            kind, places, left = next_places(self.held, left, free, self.plan.refill)
            moved = [place for place in places if place.source != place.slot]
            if moved:
                rows = self._rows([place.slot for place in moved])
                sources = self._rows([place.source for place in moved])
                self.past = slots.copy_jit(self.past, sources, rows, self.mesh)
            if kind != "same":
                self.past = self._read(self.past, places)
            for place in places:
                request = requests[place.waiting.session]
                self.held.put(place.slot, place.waiting.head[place.base :], place.base)
                self.stats.prompt_tokens += len(request.prompt)
                self.stats.forwarded_prompt_tokens += 1 + len(place.rest)
                self.seats[place.slot] = self._seat(place, request)

    def _grow(self, heads: Sequence[np.ndarray]) -> None:
        """Gives the slots another trunk, where nobody has what is there and some share one."""
        held = self.held
        if held.base[list(self.seats)].any() or any(held.begins(head) for head in heads):
            return
        trunk = shared_beginning(heads)
        if not len(trunk):
            return
        rows, span = batching.row_count(1, 1, self.mesh), batching.bucket(len(trunk))
        past = slots.empty_jit(self.model.config, rows, span, False, self.mesh)
        past = self._read(past, [Place(Waiting(0, trunk, 0), 0, 0, 0)])
        # Not a bucket: it is read in every step, and there are few.
        self.trunk = slots.trunk_jit(past, -(-len(trunk) // ROUND) * ROUND, self.mesh)
        held.grow(trunk)
        self.stats.forwarded_prompt_tokens += len(trunk)

    def _read(self, past: Any, places: Sequence[Place]) -> Any:
        """The slots `past` with what requests need there, piece by piece."""
        model, mesh = self.model, self.mesh
        for first in range(0, max(len(place.rest) for place in places), self.piece):
            some = [place for place in places if len(place.rest) > first]
            pieces = [place.rest[first : first + self.piece] for place in some]
            count, width = self._padded(len(some)), batching.bucket(max(map(len, pieces)))
            tokens, counts = map(self.put, batching.pad_right(pieces, count, width))
            rows = self._rows([place.slot for place in some])
            kept = self._rows([place.kept + first for place in some])
            base = self._rows([place.base for place in some])
            if not first and not any(place.kept or place.base for place in some):
                cache = slots.prefill_jit(model.params, model.config, tokens, counts, mesh)
                past = slots.write_jit(past, cache, rows, kept, mesh)
                continue
            trunk = (self.trunk, base) if any(place.base for place in some) else (None, None)
            past = slots.extend_jit(
                model.params, model.config, past, rows, kept, tokens, counts, mesh, *trunk
            )
        return past

    def _padded(self, count: int) -> int:
        """How many are computed: those of a refill, or the fewest where there is only one."""
        return batching.row_count(1, 1, self.mesh) if count == 1 else self.plan.refill

    def _rows(self, numbers: list[int]) -> jax.Array:
        """[F] numbers, the last one repeated: what is written twice is the same."""
        padded = [*numbers, *numbers[-1:] * (self._padded(len(numbers)) - len(numbers))]
        return self.put(np.asarray(padded, np.int32))

    def _seat(self, place: Place, request: Request) -> Seat:
        settings, vocabulary = request.settings, self.model.config.vocab_size
        ends = self._ends(settings.stop)
        of, slot = self.slots, place.slot
        of.token[slot] = request.prompt[-1]
        of.position[slot] = len(request.prompt) - 1
        of.base[slot] = place.base
        of.generated[slot] = 0
        of.done[slot] = False
        of.budget[slot] = settings.max_new_tokens
        if of.keys.shape[1] != request.key_bits.size:
            of = self.slots = of._replace(
                keys=np.zeros((len(of.token), request.key_bits.size), np.uint32)
            )
        of.keys[slot] = request.key_bits
        of.filters.temperature[slot] = settings.temperature
        of.filters.top_k[slot] = min(settings.top_k or vocabulary, vocabulary)
        of.filters.top_p[slot] = settings.top_p
        of.filters.min_p[slot] = settings.min_p
        if len(ends) > of.stop_ids.shape[1]:
            wider = np.full((len(of.token), batching.bucket(len(ends))), NO_TOKEN, np.int32)
            wider[:, : of.stop_ids.shape[1]] = of.stop_ids
            of = self.slots = of._replace(stop_ids=typing.cast(Any, wider))
        of.stop_ids[slot] = NO_TOKEN
        of.stop_ids[slot, : len(ends)] = ends
        return Seat(place.waiting.session, request, ends, [], [], [])

    def _ends(self, stops: tuple[str, ...]) -> list[int]:
        """The tokens that end a request: of the end of text, and of stop strings of one token."""
        if stops not in self.ends:
            end, tokens = self.model.tokenizer.eos_id, stop_tokens(stops, self.model.tokenizer)[0]
            self.ends[stops] = [NO_TOKEN if end is None else end, *tokens]
        return self.ends[stops]

    def step(self, wanted: int) -> list[tuple[int, Seat, Completion]]:
        """Decodes a chunk, or until `wanted` requests are done; gives those that are.

        Their slots are free then, and hold what they held.
        """
        of, used = self.slots, list(self.seats)
        left = of.budget[used] - of.generated[used]
        if (of.column[used] + np.minimum(left, self.steps)).max() > self.span:
            self._fit((of.column[used] + np.minimum(left, AHEAD)).tolist())
        filters = (_mode(self.seats[slot].request.settings) for slot in used)
        self.past, chunk = slots.decode_jit(
            self.model.params,
            self.model.config,
            self.past,
            jax.tree.map(self.put, of),
            self.steps,
            min(self.plan.slots - len(used) + max(wanted, 1), self.plan.slots),
            max(filters, key=MODES.index),
            self.steps,
            self.mesh,
            self.trunk if of.base[used].any() else None,
        )
        tokens, logprobs, tempered, steps = placing.fetch(tuple(chunk))
        self.stats.decode_steps += int(steps)
        counts = (tokens != NO_TOKEN).sum(axis=1)
        over = []
        for slot in used:
            seat, count = self.seats[slot], int(counts[slot])
            new = tokens[slot, :count].tolist()
            seat.tokens += new
            seat.logprobs += logprobs[slot, :count].tolist()
            seat.tempered += tempered[slot, :count].tolist()
            completion = self._finished(seat)
            if count:
                of.token[slot] = new[-1]
                of.position[slot] += count
                of.generated[slot] += count
            if completion is not None:
                over.append((slot, seat, completion))
                del self.seats[slot]
                of.done[slot] = True
                base = int(of.base[slot])
                self.held.put(slot, [*seat.request.prompt, *seat.tokens[:-1]][base:], base)
                self.stats.generated_tokens += len(completion.token_ids)
        return over

    def _finished(self, seat: Seat) -> Completion | None:
        """The completion, or None while it goes on."""
        tokenizer, settings = self.model.tokenizer, seat.request.settings
        ids, ends = seat.tokens, seat.ends
        at_end = bool(ids) and ids[-1] == tokenizer.eos_id
        spoken = ids[:-1] if at_end else ids
        over = at_end or len(ids) >= settings.max_new_tokens or (bool(ids) and ids[-1] in ends)
        if not over and len(ends) > len(settings.stop):  # every stop is a token
            return None
        stop = find_stop(spoken, settings.stop, tokenizer.decode)
        if stop is None and not over:
            return None
        if stop is None:
            text = tokenizer.decode(spoken)
        else:
            text, kept = stop
            ids = ids[:kept]
        return Completion(
            text=text,
            token_ids=list(ids),
            logprobs=seat.logprobs[: len(ids)],
            tempered_logprobs=seat.tempered[: len(ids)],
            finish_reason="stop" if at_end or stop is not None else "length",
        )

    def _fit(self, lengths: Sequence[int]) -> None:
        """Gives the slots columns for texts of these lengths besides those that are there.

        They keep what they have, unless it is too little, or more than twice what is needed.
        """
        of, used = self.slots, list(self.seats)
        live = of.column[used] + np.minimum(of.budget[used] - of.generated[used], self.steps)
        needed = batching.bucket(max([*lengths, *live.tolist()]), SMALLEST_SPAN)
        if self.span < needed or self.span >= 2 * needed:
            if self.past is None:
                self.past = slots.empty_jit(
                    self.model.config, self.plan.slots, needed, self.plan.eight_bits, self.mesh
                )
            else:
                self.past = slots.resize_jit(self.past, needed, self.mesh)
            self.span = needed
            self.held.cut(needed)


def by_layer(model: LanguageModel, mesh: Mesh | None) -> LanguageModel:
    """The model with weights that are cut by layer once, not in each chunk, if layers are unrolled.

    They are there twice then; on a device without room for that, layers are in a loop.
    """
    size = sum(array.nbytes for array in jax.tree.leaves(model.params))
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    if transformer.unrolls(model.config) and 2 * size > WEIGHTS_SHARE * limit:
        return model._replace(config=dataclasses.replace(model.config, scan_unroll=1))
    return model._replace(params=slots.by_layer_jit(model.params, model.config, mesh))


def piece_tokens(config: ModelConfig, refill: int) -> int:
    """Tokens of a prompt that are read at once, of `refill` prompts."""
    plain = attention_kernels.choose(config, PIECE) == "plain"
    return PIECE if plain else max(PIECE, TOGETHER // refill)


def _mode(settings: SamplingSettings) -> typing.Any:
    return mode_of(settings.temperature, settings.top_k, settings.top_p, settings.min_p)


def no_slots(count: int, ends: int) -> Any:
    """Slots that are all free: NumPy arrays, which the host changes in place."""

    def zeros(kind: type) -> Any:
        return np.zeros(count, kind)

    return Slots(
        token=zeros(np.int32),
        position=zeros(np.int32),
        generated=zeros(np.int32),
        done=~zeros(np.bool_),
        budget=zeros(np.int32),
        keys=typing.cast(Any, np.zeros((count, 2), np.uint32)),
        filters=Filter(
            zeros(np.float32), zeros(np.int32), 1 + zeros(np.float32), zeros(np.float32)
        ),
        stop_ids=typing.cast(Any, np.full((count, ends), NO_TOKEN, np.int32)),
        base=zeros(np.int32),
    )
