"""Searches on the device: steps follow one another without the host, on CUDA as one captured graph replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gitfast.engines.base import GenerationOptions, TokenCallback
from gitfast.engines.cuda_decoder import Decoder, TextRows, TextStore
from gitfast.engines.cuda_fused import FusedDecoder, FusedRows, Listener
from gitfast.engines.cuda_graphs import Repeated, captured
from gitfast.engines.cuda_text import CudaPrefix, Place, empty_group, group_tiles, stack
from gitfast.ops import cuda
from gitfast.ops.cuda_search import MOST_BEAMS, Found, SearchSize, SearchState

_TOKENS_APART = 16  # texts this many tokens longer or shorter share a plan
_STEPS_AHEAD = 3  # that the device has to do while the host learns whether there is more: no step waits for the host
_MOST_CHOICES = 64  # of head_select
_COLDEST = 1e-30  # logits over a temperature must be numbers


class Way(NamedTuple):
    """How tokens are chosen, as far as a captured step knows it: the rest is read from memory."""

    rows: int  # per prompt: beams or samples
    beams: bool
    draws: bool
    choices: int  # that the head makes of each row
    temperature: float | None = None  # of draws among all tokens, by the head; None: among its choices

    @classmethod
    def of(cls, options: GenerationOptions, vocab_size: int) -> Way | None:
        """That of options which can be; None where it takes the search of the host: rules, or too many choices."""
        free = {name: getattr(options, name) for name in ("max_new_tokens", "seed", *_CHOICE_OF_TOKENS)}
        if options != GenerationOptions(**free):
            return None
        if options.num_beams > 1:
            if options.num_beams > MOST_BEAMS:
                return None
            return cls(options.num_beams, True, False, min(2 * options.num_beams, vocab_size))
        if not options.do_sample:
            return cls(1, False, False, 1)
        rows, temperature = options.num_return_sequences, options.temperature
        if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
            return cls(rows, False, True, 1, temperature) if temperature >= _COLDEST else None
        # One more than may be drawn: equal scores at the edge are kept.
        choices = min(options.top_k + 1 if options.top_k else vocab_size, vocab_size)
        return cls(rows, False, True, choices) if choices <= _MOST_CHOICES else None


_CHOICE_OF_TOKENS = (
    "num_beams", "num_return_sequences", "length_penalty", "length_penalty_form", "early_stopping", "do_sample",
    "temperature", "top_k", "top_p", "min_p",
)  # fmt: skip


class PlanKey(NamedTuple):
    """Which calls share a plan."""

    way: Way
    places: tuple[Place, ...]  # of prompts
    groups: tuple[tuple[int, int], ...]  # images and their tokens
    max_text: int

    @classmethod
    def of(
        cls, way: Way, places: Sequence[Place], groups: Sequence[Sequence[CudaPrefix | None]], tokens: int
    ) -> PlanKey:
        """For texts of so many tokens, prompts included."""
        max_text = -(-tokens // _TOKENS_APART) * _TOKENS_APART
        sizes = ((len(images), 0 if images[0] is None else images[0].num_tokens) for images in groups)
        return cls(way, tuple(places), tuple(sizes), max_text)


class SearchPlan:
    """What a search over rows of one kind needs, at addresses that stay: a step is captured once.

    After an error it is of no more use.
    """

    def __init__(self, decoder: Decoder, fused: FusedDecoder | None, key: PlanKey, eos: int) -> None:
        self._decoder, self._way, self._places = decoder, key.way, key.places
        self._groups = [empty_group(decoder, *sizes) for sizes in key.groups]
        device, prompts = decoder.like.device, len(key.places)
        size = SearchSize(prompts, key.way.rows, key.way.beams, key.way.draws, key.max_text)
        flat = (torch.int32, (prompts * key.max_text,))  # of all tokens of the prompts, one after another
        more = {"flat_ids": flat, "flat_positions": flat, "flat_text_len": flat, "flat_rows": flat}
        self._state = SearchState(size, eos, device, more | {"last_of_prompt": (torch.int32, (size.rows,))})
        self._store = TextStore.empty(decoder, size.rows * key.max_text, size.rows)
        tiles = group_tiles([place for place in key.places for _ in range(key.way.rows)], len(key.groups), device)
        state = self._state
        self._rows = TextRows(state.ids, state.positions, state.slots, state.text_len, tiles, apart=True)
        images = [image for _, image in key.places for _ in range(key.way.rows)]
        self._fused = fused.plan(images, self._groups, self._store) if fused else None
        # Copied to the host behind every step, and looked at without waiting: late, but it only grows.
        self._num_ended = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._start, self._step = Repeated(), Repeated()
        self._capture = functools.partial(_captured_on, device) if device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []

    def run(
        self,
        groups: Sequence[Sequence[CudaPrefix | None]],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        on_token: TokenCallback | None = None,
    ) -> tuple[list[list[Found]], int]:
        """What is found for native ``options``, as ``_C.Search.results`` gives it, and the steps that were done.

        ``on_token`` only where ``tells`` says so: see ``Engine.generate``.

        Raises:
            ValueError: a row's logits were no numbers.
        """
        for kept, images in zip(self._groups, groups, strict=True):
            stack(images, out=kept)
        state, limit = self._state, options["max_new_tokens"]
        state.ask(prompts, options)
        as_steps = self._as_steps(prompts)
        if not as_steps:
            self._ask_for_prompts(prompts)
        self._start(self._give, self._capture)
        self._num_ended.zero_()
        self._events.clear()
        steps = 0
        if not as_steps:
            self._choose(self._prompts(prompts))
            steps = 1
        count = options["num_return_sequences"]
        if self._fused and self._runs_texts():
            return self._text(self._fused, steps, limit, count, on_token)
        while steps < limit and not self._ended_by_now():
            self._advance()
            steps += 1
        return state.results(steps, count), steps

    def _text(
        self, fused: FusedRows, steps: int, limit: int, count: int, on_token: TokenCallback | None
    ) -> tuple[list[list[Found]], int]:
        """As ``run``, after so many steps, by one kernel."""
        state = self._state
        if steps < limit:
            listener = Listener(state) if on_token else None
            fused.text(state, self._way.choices, listener)
            steps = listener.report(on_token) if listener and on_token else limit
        results = state.results(limit, count)
        fused.check()
        if on_token:
            results = [[_first(found, steps, state.eos) for found in item] for item in results]
        return results, max(len(ids) for item in results for ids, *_ in item)

    def tells(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether tokens can be told while the device goes on."""
        return self._as_steps(prompts) and self._runs_texts()

    def _as_steps(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether the prompts are fed as steps are."""
        return self._way.rows == 1 and all(len(ids) == 1 for ids in prompts)

    def _runs_texts(self) -> bool:
        way = self._way
        return self._fused is not None and way.temperature is None and self._fused.runs_texts

    def _ask_for_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        host, rows = self._state.given.host, self._way.rows
        flat = [token for ids in prompts for token in ids]
        places = torch.tensor([i for ids in prompts for i in range(len(ids))], dtype=torch.int32)
        host["flat_ids"][: len(flat)] = torch.tensor(flat, dtype=torch.int32)
        host["flat_positions"][: len(flat)] = places
        host["flat_text_len"][: len(flat)] = places + 1
        first_rows = [p * rows for p, ids in enumerate(prompts) for _ in ids]
        host["flat_rows"][: len(flat)] = torch.tensor(first_rows, dtype=torch.int32)
        last = torch.tensor([len(ids) for ids in prompts], dtype=torch.int32).cumsum(0) - 1
        host["last_of_prompt"].copy_(last.repeat_interleave(rows))

    def _prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (R, D) of the last token of each row's prompt."""
        given, count = self._state.given.device, sum(map(len, prompts))
        ids, positions, text_len, rows = (
            given[name][:count] for name in ("flat_ids", "flat_positions", "flat_text_len", "flat_rows")
        )
        places = [place for place, ids in zip(self._places, prompts, strict=True) for _ in ids]
        tiles = group_tiles(places, len(self._groups), ids.device)
        apart = all(len(ids) == 1 for ids in prompts)
        text = TextRows(ids, positions, self._state.slots.index_select(0, rows), text_len, tiles, apart)
        store = self._store if count <= len(self._rows.ids) else self._store.for_rows(count)
        return self._decoder.hidden(text, self._groups, store).index_select(0, given["last_of_prompt"])

    def _choose(self, hidden: Tensor) -> None:
        """The next token of every row, and all that follows from it."""
        state, way = self._state, self._way
        if way.temperature is None:
            chosen = self._decoder.select(hidden, choices=way.choices)
        else:
            chosen = self._decoder.select(hidden, temperature=way.temperature, keys=state.keys, step=state.steps[:1])
        cuda.advance_search(state, chosen, overlap=True)
        self._num_ended.copy_(state.num_ended, non_blocking=True)

    def _hidden(self) -> Tensor:
        """Hidden states (R, D) of every row's next token."""
        if self._fused:
            return self._fused.hidden(self._rows)
        return self._decoder.hidden(self._rows, self._groups, self._store)

    def _give(self) -> None:
        self._state.given.to_device()
        cuda.start_search(self._state)

    def _advance(self) -> None:
        self._step(lambda: self._choose(self._hidden()), self._capture)
        device = self._state.ids.device
        if device.type == "cuda":
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(device))

    def _ended_by_now(self) -> bool:
        """Whether all items are known to have ended, when no more than a few steps are still to be done."""
        if len(self._events) >= _STEPS_AHEAD:
            self._events.pop(0).synchronize()
        return int(self._num_ended) == self._state.items


def _captured_on(device: torch.device, enqueue: Callable[[], None]) -> torch.cuda.CUDAGraph:
    return captured(enqueue, stream=torch.cuda.Stream(device))


def _first(found: Found, steps: int, eos: int) -> Found:
    """The first tokens of a text, which was stopped there."""
    ids, values = found[0][:steps], found[1][:steps]
    return ids, values, sum(values), "stop" if ids[-1] == eos else "length"
