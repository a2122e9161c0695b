"""Search on the device: steps follow one another without the host, on CUDA as one captured graph replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gitfast import _C
from gitfast.engines.cuda.decoder import Decoder, TextRows, TextStore
from gitfast.engines.cuda.graphs import CapturedStep, capture
from gitfast.engines.cuda.persistent import PersistentDecoder, PersistentRows, TokenStream, persistent_rows
from gitfast.engines.cuda.sequences import (
    CudaPrefix,
    PrefixIndex,
    empty_group,
    group_prefixes,
    group_tiles,
    put,
    stack,
    tokens_of,
)
from gitfast.ops import cuda
from gitfast.ops.cuda_search import Found, SearchSize, SearchState
from gitfast.types import GenerationOptions, TokenCallback

_LENGTH_BUCKET = 16  # tokens: sequences whose most tokens round up to the same multiple share a search
_MAX_STEPS_AHEAD = 3  # steps the device has enqueued while the host learns whether there are more
_SHARED_SLOTS = 16  # of searches that calls join: as many rows as products of weights take at the price of one
_SHARED_LENGTH_BUCKET = 64  # tokens, there
REFILLS = 4  # times the slots: so many sequences have a place in memory
_MOST_QUEUED = 1 << 30  # sequences that one search takes in all: it counts them in 32 bits
_MIN_TEMPERATURE = 1e-30  # logits over it must be numbers

_SEARCHED_ON_DEVICE = (
    "num_beams", "num_return_sequences", "length_penalty", "length_penalty_form", "early_stopping", "do_sample",
    "temperature", "top_k", "top_p", "min_p",
)  # fmt: skip


class SearchMode(NamedTuple):
    """The choice of tokens, as far as a captured step depends on it: the rest is read from memory."""

    rows: int  # per prompt: beams or samples
    beams: bool
    draws: bool
    choices: int  # made by the head per row
    temperature: float | None = None  # for draws among all tokens, by the head; None: draws among its choices

    @property
    def rows_per_sequence(self) -> int:
        """Beams, or one."""
        return self.rows if self.beams else 1

    @property
    def sequences_per_prompt(self) -> int:
        """Samples, or one."""
        return 1 if self.beams else self.rows

    @classmethod
    def of(cls, options: GenerationOptions, vocab_size: int) -> SearchMode | None:
        """Return the mode of valid options; None where the host must search: rules, or too many choices."""
        free = {name: getattr(options, name) for name in ("max_new_tokens", "seed", *_SEARCHED_ON_DEVICE)}
        if options != GenerationOptions(**free):
            return None
        if options.num_beams > 1:
            if options.num_beams > _C.cuda_limits.MAX_BEAMS:
                return None
            return cls(options.num_beams, True, False, min(2 * options.num_beams, vocab_size))
        if not options.do_sample:
            return cls(1, False, False, 1)
        rows, temperature = options.num_return_sequences, options.temperature
        if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
            return cls(rows, False, True, 1, temperature) if temperature >= _MIN_TEMPERATURE else None
        # One more than may be drawn: equal scores at the edge are kept.
        choices = min(options.top_k + 1 if options.top_k else vocab_size, vocab_size)
        return cls(rows, False, True, choices) if choices <= _C.cuda_limits.MAX_CHOICES else None


class SearchKey(NamedTuple):
    """The calls that can share the memory of a search."""

    mode: SearchMode
    slots: int  # sequences decoded together
    sequences: int
    # One per prompt, where prompts share prefixes or prefixes have several lengths.
    prefixes: tuple[PrefixIndex, ...] | None
    groups: tuple[tuple[int, int], ...]  # images and their tokens
    max_text: int

    @classmethod
    def of(
        cls,
        mode: SearchMode,
        prefixes: Sequence[CudaPrefix | None],
        tokens: int,
        rows_at_once: int,
        *,
        shared: bool = False,
    ) -> SearchKey:
        """Return the key for prompts with these prefixes and sequences of at most so many tokens, prompts included.

        If they need more rows than ``rows_at_once``, or are ``shared``, and the prefixes have one length, other
        prompts can join: without ``prefixes`` any sequence may see any prefix, which is read for each slot, and no more
        when nothing is left to do. There is memory for some times as many sequences as slots.
        """
        groups, where = group_prefixes(prefixes)
        sequences, most = len(where) * mode.sequences_per_prompt, max(1, rows_at_once // mode.rows_per_sequence)
        sizes = tuple((len(images), tokens_of(images[0])) for images in groups)
        if len(sizes) > 1 or (sequences <= most and not shared):
            max_text = _rounded_up(tokens, _LENGTH_BUCKET)
            one_each = len(sizes) == 1 and sizes[0][0] == sequences
            return cls(mode, sequences, sequences, None if one_each else tuple(where), sizes, max_text)
        ((images, length),) = sizes
        if shared:
            slots = min(most, max(_SHARED_SLOTS // mode.rows_per_sequence, 1))
            images = sequences = REFILLS * slots
        else:
            slots = most
            images, sequences = (min(_rounded_up(count, most), REFILLS * most) for count in (images, sequences))
        sequences = _rounded_up(sequences, mode.sequences_per_prompt)
        max_text = _rounded_up(tokens, _SHARED_LENGTH_BUCKET if shared else _LENGTH_BUCKET)
        return cls(mode, slots, sequences, None, ((images, length),), max_text)

    def takes(self, mode: SearchMode, prefix_tokens: int | None, tokens: int) -> bool:
        """Return whether prompts whose prefixes have so many tokens each, None for several lengths, can join."""
        if self.prefixes is not None or prefix_tokens is None:
            return False
        return self.mode == mode and self.groups[0][1] == prefix_tokens and tokens <= self.max_text


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class DeviceSearch:
    """The memory of searches with one key, at addresses that stay: a step is captured once.

    After an error it is of no more use.
    """

    def __init__(self, decoder: Decoder, persistent: PersistentDecoder | None, key: SearchKey, eos: int) -> None:
        self._decoder, self._mode, self._slots = decoder, key.mode, key.slots
        self._groups = [empty_group(decoder, *sizes) for sizes in key.groups]
        self._device, rows_per_slot = decoder.like.device, key.mode.rows_per_sequence
        slot_tiles: Tensor | None = None
        if key.prefixes is None:  # a slot's rows see one prefix, which changes with its sequence
            of_slots = [[slot * rows_per_slot, rows_per_slot, -1] for slot in range(key.slots)]
            slot_tiles = torch.tensor(of_slots, dtype=torch.int32, device=self._device)
            tiles = [slot_tiles]
        else:
            of_rows = [prefix for prefix in key.prefixes for _ in range(key.mode.rows)]
            tiles = group_tiles(of_rows, len(key.groups), self._device)
        shape = (key.sequences, key.mode.sequences_per_prompt, key.slots, rows_per_slot, key.mode.draws, key.max_text)
        size = SearchSize(*shape)
        self._state = state = SearchState(size, eos, self._device, slot_tiles)
        self._store = TextStore.empty(decoder, key.sequences * rows_per_slot * key.max_text, size.rows)
        self._rows = TextRows(state.ids, state.positions, state.kv_index, state.text_len, tiles, independent=True)
        self._persistent: PersistentRows | None = None
        if key.mode.temperature is None:  # else the head draws, which is a kernel of its own
            work = (size.rows, key.mode.choices, self._groups, self._store)
            self._persistent = persistent_rows(persistent, *work)
        self._start, self._step = CapturedStep(), CapturedStep()
        self._capture = functools.partial(_capture_on, self._device) if self._device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []
        self._steps_left = 0  # steps that sequences may need beyond those enqueued, at most
        self._sent: torch.cuda.Event | None = None  # the host's arrays may change after it
        self._refills = key.prefixes is None  # prompts take any place, and others join
        self._free = list(range(state.prompts))[::-1]  # places of prompts
        self._free_images = list(range(key.groups[0][0]))[::-1] if self._refills else []
        self._images: dict[int, _Image] = {}  # by id
        self._image_of: dict[int, _Image] = {}  # by place of a prompt

    @property
    def is_idle(self) -> bool:
        """True if no prompt has a place."""
        return len(self._free) == self._state.prompts

    @property
    def is_used_up(self) -> bool:
        """True if no more prompts may join, ever."""
        return int(self._state.given.host["queued"][0]) >= _MOST_QUEUED

    @property
    def is_persistent(self) -> bool:
        """True if the persistent kernel takes all steps."""
        return self._persistent is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the prefixes and of the keys and values of text."""
        arrays = [x for group in self._groups for x in (group.keys, group.values, group.k_scale, group.v_scale)]
        return sum(x.nbytes for x in (*arrays, self._store.keys, self._store.values) if x is not None)

    def room(self, prefixes: Sequence[CudaPrefix | None]) -> int:
        """Count how many prompts, of the first, can join now: none while enough others wait for slots."""
        if not self._refills:
            return len(prefixes) if self.is_idle else 0
        if self.is_used_up:
            return 0
        going_on = (self._state.prompts - len(self._free)) - len(self._state.ended_prompts())
        if going_on * self._mode.sequences_per_prompt >= 2 * self._slots:
            return 0
        fresh: set[int] = set()
        for count, prefix in enumerate(prefixes[: len(self._free)]):
            if id(prefix) not in self._images:
                fresh.add(id(prefix))
            if len(fresh) > len(self._free_images):
                return count
        return min(len(prefixes), len(self._free))

    def join(
        self,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
    ) -> list[int]:
        """Let prompts join at the next step, as many as there is room for; return their places.

        An error leaves the search as it was, but for one in the last of its kernels.
        """
        was_idle = self.is_idle
        if self._refills:
            places = [self._free.pop() for _ in prompts]
            where = [(0, image) for image in self._place_images(prefixes, places)]
        else:
            groups, where = group_prefixes(prefixes)
            for kept, images in zip(self._groups, groups, strict=True):
                stack(images, out=kept)
            places, self._free = list(range(len(prompts))), []
        try:
            self._store_prompts(prompts, where, places)
        except BaseException:
            for place in places:
                self.leave(place)
            raise
        self._change(lambda: self._state.ask(prompts, [image for _, image in where], options, places))
        self._start(self._begin, self._capture)
        self._note_sent()
        self._steps_left = self._most_steps(len(places), options["max_new_tokens"], 0 if was_idle else self._steps_left)
        return places

    def leave(self, place: int) -> None:
        """Make room where a prompt has ended and was read."""
        self._state.let_go(place)
        self._free.append(place)
        if not self._refills:
            return
        image = self._image_of.pop(place)
        image.prompts -= 1
        if not image.prompts:
            del self._images[id(image.prefix)]
            self._free_images.append(image.number)

    def stop(self, places: Sequence[int]) -> None:
        """Let prompts end at their next step."""
        self._change(lambda: self._state.stop(places))
        self._state.given.to_device()
        self._note_sent()

    def advance(self) -> bool:
        """Enqueue a step, when no more than a few others are; return whether one was.

        None is when all sequences have ended, or will have by the end of the steps that are: those are waited for.
        """
        if self._events and (len(self._events) >= _MAX_STEPS_AHEAD or not self._steps_left):
            self._events.pop(0).synchronize()
        if not self._steps_left or len(self._free) + len(self.ended()) == self._state.prompts:
            return False
        self._steps_left -= 1
        self._step(lambda: self._choose(self._decoder.hidden(self._rows, self._groups, self._store)), self._capture)
        if self._device.type == "cuda":
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(self._device))
        return True

    def ended(self) -> list[int]:
        """List the places of prompts that have ended, as far as the host knows."""
        return self._state.ended_prompts()

    def fetch(self) -> None:
        """Copy the results of prompts that have ended to the host."""
        self._state.found.to_host()

    def result(self, place: int, options: Mapping[str, Any]) -> list[Found]:
        """Read the results of a prompt that were fetched. See ``SearchState.result``."""
        return self._state.result(place, options)

    def settle(self) -> None:
        """Wait for the device: its memory on the host may be freed afterwards."""
        for event in self._events:
            event.synchronize()

    def run_persistent(
        self, places: Sequence[int], options: Mapping[str, Any], on_token: TokenCallback | None = None
    ) -> tuple[list[list[Found]], int]:
        """Run prompts that have joined to their end, by one kernel; return their results and the number of steps.

        ``on_token`` is for greedy search, all rows together: see ``Engine.generate``.

        Raises:
            ValueError: the logits of a row were not numbers.
            EngineError: the blocks of the persistent kernel could not run together.
        """
        state, persistent = self._state, self._persistent
        assert persistent is not None
        stream = TokenStream(state) if on_token else None
        persistent.enqueue(state, stream)
        steps = stream.report(on_token) if stream and on_token else options["max_new_tokens"]
        state.found.to_host()
        persistent.check()
        results = state.results(options, places)
        for place in places:
            self.leave(place)
        if on_token:
            results = [[_first(found, steps, state.eos) for found in sequences] for sequences in results]
        return results, max(len(ids) for sequences in results for ids, *_ in sequences)

    def _most_steps(self, joined: int, limit: int, before: int) -> int:
        """Count the steps until all have ended, at most, where prompts have joined others that need ``before``."""
        each = self._mode.sequences_per_prompt
        if (self._state.prompts - len(self._free)) * each <= self._slots:  # all have begun
            return max(before, limit)
        return before + limit * -(-joined * each // self._slots)

    def _change(self, change: Callable[[], None]) -> None:
        """Change what the host gives, once the device has what was sent before."""
        if self._sent is not None:
            self._sent.synchronize()
        change()

    def _note_sent(self) -> None:
        if self._device.type == "cuda":
            self._sent = torch.cuda.Event()
            self._sent.record(torch.cuda.current_stream(self._device))

    def _begin(self) -> None:
        self._state.given.to_device()
        cuda.start_search(self._state)

    def _place_images(self, prefixes: Sequence[CudaPrefix | None], places: Sequence[int]) -> list[int]:
        """Copy the prefixes of prompts that are not there yet; return where in the group each is."""
        fresh: list[_Image] = []
        for prefix, place in zip(prefixes, places, strict=True):
            image = self._images.get(id(prefix))
            if image is None:
                image = self._images[id(prefix)] = _Image(prefix, self._free_images.pop())
                fresh.append(image)
            image.prompts += 1
            self._image_of[place] = image
        put([image.prefix for image in fresh], [image.number for image in fresh], self._groups[0])
        return [self._image_of[place].number for place in places]

    def _store_prompts(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[PrefixIndex], places: Sequence[int]
    ) -> None:
        """Store keys and values of all prompt tokens but the last ones, which are fed in the first steps."""
        length, mode = self._state.size.max_text, self._mode
        each = mode.sequences_per_prompt * mode.rows_per_sequence * length  # entries of a prompt
        tokens = [(p, i, token) for p, ids in enumerate(prompts) for i, token in enumerate(ids[:-1])]
        if not tokens:
            return
        fed = [[token, i, i + 1, places[p] * each] for p, i, token in tokens]
        ids, positions, text_len, first = torch.tensor(fed, dtype=torch.int32).T.contiguous().to(self._device)
        kv_index = first[:, None] + torch.arange(length, dtype=torch.int32, device=self._device)
        tiles = group_tiles([prefixes[p] for p, *_ in tokens], len(self._groups), self._device)
        independent = all(len(ids) <= 2 for ids in prompts)
        store = self._store if len(tokens) <= len(self._rows.ids) else self._store.for_rows(len(tokens))
        self._decoder.hidden(TextRows(ids, positions, kv_index, text_len, tiles, independent), self._groups, store)

    def _choose(self, hidden: Tensor) -> None:
        """Choose the next token of every row, and advance the search by it."""
        state, mode = self._state, self._mode
        if mode.temperature is None:
            chosen = self._decoder.select(hidden, choices=mode.choices)
        else:
            chosen = self._decoder.select(hidden, temperature=mode.temperature, keys=state.row_keys, step=state.steps)
        cuda.advance_search(state, chosen, overlap=True)


@dataclass
class _Image:
    """A prefix in the memory of a search, and how many prompts see it."""

    prefix: CudaPrefix | None
    number: int
    prompts: int = 0


def _capture_on(device: torch.device, enqueue: Any) -> torch.cuda.CUDAGraph:
    return capture(enqueue, stream=torch.cuda.Stream(device))


def _first(found: Found, steps: int, eos: int) -> Found:
    """Cut a sequence that was stopped after so many tokens."""
    ids, values = found[0][:steps], found[1][:steps]
    return ids, values, sum(values), "stop" if ids[-1] == eos else "length"
