"""Searches on the device: steps follow one another without the host, on CUDA as one captured graph replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gitfast.engines.cuda.decoder import Decoder, TextRows, TextStore
from gitfast.engines.cuda.fused import FusedDecoder, FusedRows, Listener
from gitfast.engines.cuda.graphs import Repeated, captured
from gitfast.engines.cuda.sequences import CudaPrefix, Place, empty_group, group_tiles, stack
from gitfast.ops import cuda
from gitfast.ops.cuda_search import MOST_BEAMS, Found, SearchSize, SearchState
from gitfast.types import GenerationOptions, TokenCallback

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

    @property
    def rows_per_text(self) -> int:
        """Beams, or one."""
        return self.rows if self.beams else 1

    @property
    def texts_per_prompt(self) -> int:
        """Samples, or one."""
        return 1 if self.beams else self.rows

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
    items: int  # decoded together
    texts: int  # of beams, or samples
    places: tuple[Place, ...] | None  # of the prompts, where they share prefixes or those are of several lengths
    groups: tuple[tuple[int, int], ...]  # images and their tokens
    max_text: int

    @classmethod
    def of(
        cls,
        way: Way,
        places: Sequence[Place],
        groups: Sequence[Sequence[CudaPrefix | None]],
        tokens: int,
        rows_at_once: int,
    ) -> PlanKey:
        """For texts of so many tokens, prompts included. If they are more than ``rows_at_once`` rows, there is one
        group, and calls of other numbers of texts and images share the plan, as far as that is worth its memory.

        Without places any text may see any prefix, which is read for each item, and no more when nothing is left to do.
        """
        max_text = -(-tokens // _TOKENS_APART) * _TOKENS_APART
        texts, most = len(places) * way.texts_per_prompt, max(1, rows_at_once // way.rows_per_text)
        sizes = tuple((len(images), 0 if images[0] is None else images[0].num_tokens) for images in groups)
        if texts <= most:
            apart = len(sizes) == 1 and sizes[0][0] == texts
            return cls(way, texts, texts, None if apart else tuple(places), sizes, max_text)
        ((images, length),) = sizes
        images, texts = (-(-count // most) * most for count in (images, texts))
        texts = -(-texts // way.texts_per_prompt) * way.texts_per_prompt
        return cls(way, most, texts, None, ((images, length),), max_text)


class SearchPlan:
    """What a search over rows of one kind needs, at addresses that stay: a step is captured once.

    After an error it is of no more use.
    """

    def __init__(self, decoder: Decoder, fused: FusedDecoder | None, key: PlanKey, eos: int) -> None:
        self._decoder, self._way = decoder, key.way
        self._groups = [empty_group(decoder, *sizes) for sizes in key.groups]
        self._device, rows_per_text = decoder.like.device, key.way.rows_per_text
        item_tiles: Tensor | None = None
        if key.places is None:  # an item's rows see one prefix, which changes with its text
            of_items = [[item * rows_per_text, rows_per_text, 0] for item in range(key.items)]
            item_tiles = torch.tensor(of_items, dtype=torch.int32, device=self._device)
            tiles = [item_tiles]
        else:
            places = [place for place in key.places for _ in range(key.way.rows)]
            tiles = group_tiles(places, len(key.groups), self._device)
        size = SearchSize(key.texts, key.way.texts_per_prompt, key.items, rows_per_text, key.way.draws, key.max_text)
        self._state = state = SearchState(size, eos, self._device, item_tiles)
        self._store = TextStore.empty(decoder, key.texts * rows_per_text * key.max_text, size.rows)
        self._rows = TextRows(state.ids, state.positions, state.slots, state.text_len, tiles, apart=True)
        self._fused = fused.plan(size.rows, self._groups, self._store) if fused else None
        # Copied to the host behind every step, and looked at without waiting: late, but it only grows.
        self._num_ended = torch.zeros(1, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        self._start, self._step = Repeated(), Repeated()
        self._capture = functools.partial(_captured_on, self._device) if self._device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the prefixes and of the text's keys and values."""
        arrays = [x for group in self._groups for x in (group.keys, group.values, group.k_scale, group.v_scale)]
        return sum(x.nbytes for x in (*arrays, self._store.keys, self._store.values) if x is not None)

    def run(
        self,
        groups: Sequence[Sequence[CudaPrefix | None]],
        places: Sequence[Place],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        on_token: TokenCallback | None = None,
    ) -> tuple[list[list[Found]], int]:
        """What is found for native ``options``, as ``_C.Search.results`` gives it, and the steps that were done.

        ``prompts[i]`` is continued on the prefix at ``places[i]`` of ``groups``. ``on_token`` only of greedy search by
        one kernel, with all rows together: see ``Engine.generate``.

        Raises:
            ValueError: a row's logits were no numbers.
        """
        for kept, images in zip(self._groups, groups, strict=True):
            stack(images, out=kept)
        state, limit = self._state, options["max_new_tokens"]
        state.ask(prompts, [image for _, image in places], options)
        self._start(self._give, self._capture)
        self._store_prompts(prompts, places)
        if self._fused and self._fused.runs_texts and self._way.temperature is None:
            return self._text(self._fused, options, on_token)
        self._num_ended.zero_()
        self._events.clear()
        texts, steps = len(prompts) * self._way.texts_per_prompt, 0
        rounds = -(-texts // state.size.items)  # of texts in an item, were they as long as they may be
        while steps < rounds * limit and not self._ended_by_now(texts):
            self._advance()
            steps += 1
        return self._results(options), steps

    def _text(
        self, fused: FusedRows, options: Mapping[str, Any], on_token: TokenCallback | None
    ) -> tuple[list[list[Found]], int]:
        """As ``run``, by one kernel."""
        state = self._state
        listener = Listener(state) if on_token else None
        fused.text(state, self._way.choices, listener)
        steps = listener.report(on_token) if listener and on_token else options["max_new_tokens"]
        results = self._results(options)
        fused.check()
        if on_token:
            results = [[_first(found, steps, state.eos) for found in item] for item in results]
        return results, max(len(ids) for item in results for ids, *_ in item)

    def _results(self, options: Mapping[str, Any]) -> list[list[Found]]:
        """When all is done."""
        self._state.found.to_host()
        return self._state.results(options)

    def _give(self) -> None:
        self._state.given.to_device()
        cuda.start_search(self._state)

    def _store_prompts(self, prompts: Sequence[Sequence[int]], places: Sequence[Place]) -> None:
        """Keys and values of the prompts but their last tokens, which are fed in their first steps."""
        length, way = self._state.size.max_text, self._way
        each = way.texts_per_prompt * way.rows_per_text * length  # slots of a prompt
        tokens = [(p, i, token) for p, ids in enumerate(prompts) for i, token in enumerate(ids[:-1])]
        if not tokens:
            return
        fed = [[token, i, i + 1, p * each] for p, i, token in tokens]
        ids, positions, text_len, first_slots = torch.tensor(fed, dtype=torch.int32).T.contiguous().to(self._device)
        slots = first_slots[:, None] + torch.arange(length, dtype=torch.int32, device=self._device)
        tiles = group_tiles([places[p] for p, *_ in tokens], len(self._groups), self._device)
        apart = all(len(ids) <= 2 for ids in prompts)
        store = self._store if len(tokens) <= len(self._rows.ids) else self._store.for_rows(len(tokens))
        self._decoder.hidden(TextRows(ids, positions, slots, text_len, tiles, apart), self._groups, store)

    def _advance(self) -> None:
        self._step(lambda: self._choose(self._hidden()), self._capture)
        if self._device.type == "cuda":
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(self._device))

    def _hidden(self) -> Tensor:
        """Hidden states (R, D) of every row's next token."""
        if self._fused:
            return self._fused.hidden(self._rows, self._state.image)
        return self._decoder.hidden(self._rows, self._groups, self._store)

    def _choose(self, hidden: Tensor) -> None:
        """The next token of every row, and all that follows from it."""
        state, way = self._state, self._way
        if way.temperature is None:
            chosen = self._decoder.select(hidden, choices=way.choices)
        else:
            chosen = self._decoder.select(hidden, temperature=way.temperature, keys=state.row_keys, step=state.steps)
        cuda.advance_search(state, chosen, overlap=True)
        self._num_ended.copy_(state.num_ended, non_blocking=True)

    def _ended_by_now(self, texts: int) -> bool:
        """Whether so many are known to have ended, when no more than a few steps are still to be done."""
        if len(self._events) >= _STEPS_AHEAD:
            self._events.pop(0).synchronize()
        return int(self._num_ended) == texts


def _captured_on(device: torch.device, enqueue: Callable[[], None]) -> torch.cuda.CUDAGraph:
    return captured(enqueue, stream=torch.cuda.Stream(device))


def _first(found: Found, steps: int, eos: int) -> Found:
    """The first tokens of a text, which was stopped there."""
    ids, values = found[0][:steps], found[1][:steps]
    return ids, values, sum(values), "stop" if ids[-1] == eos else "length"
