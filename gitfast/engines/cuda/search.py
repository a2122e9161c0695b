"""Search on the device: steps follow one another without the host, on CUDA as one captured graph replayed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gitfast import _C
from gitfast.engines.cuda.decoder import Decoder, TextRows, TextStore
from gitfast.engines.cuda.graphs import CapturedStep, capture
from gitfast.engines.cuda.persistent import PersistentDecoder, PersistentRows, TokenStream, persistent_rows
from gitfast.engines.cuda.sequences import CudaPrefix, PrefixIndex, empty_group, group_tiles, stack
from gitfast.ops import cuda
from gitfast.ops.cuda_search import Found, SearchSize, SearchState
from gitfast.types import GenerationOptions, TokenCallback

_LENGTH_BUCKET = 16  # tokens: sequences whose most tokens round up to the same multiple share a search
_MAX_STEPS_AHEAD = 3  # steps the device has enqueued while the host learns whether there are more
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
        prefixes: Sequence[PrefixIndex],
        groups: Sequence[Sequence[CudaPrefix | None]],
        tokens: int,
        rows_at_once: int,
    ) -> SearchKey:
        """Return the key for sequences of at most so many tokens, prompts included.

        If they need more rows than ``rows_at_once`` there is one group, and calls of other numbers of sequences and
        images share the search, as far as that is worth its memory. Without ``prefixes`` any sequence may see any
        prefix, which is read for each slot, and no more when nothing is left to do.
        """
        max_text = -(-tokens // _LENGTH_BUCKET) * _LENGTH_BUCKET
        sequences, most = len(prefixes) * mode.sequences_per_prompt, max(1, rows_at_once // mode.rows_per_sequence)
        sizes = tuple((len(images), 0 if images[0] is None else images[0].num_tokens) for images in groups)
        if sequences <= most:
            one_each = len(sizes) == 1 and sizes[0][0] == sequences
            return cls(mode, sequences, sequences, None if one_each else tuple(prefixes), sizes, max_text)
        ((images, length),) = sizes
        images, sequences = (-(-count // most) * most for count in (images, sequences))
        sequences = -(-sequences // mode.sequences_per_prompt) * mode.sequences_per_prompt
        return cls(mode, most, sequences, None, ((images, length),), max_text)


class DeviceSearch:
    """The memory of searches with one key, at addresses that stay: a step is captured once.

    After an error it is of no more use.
    """

    def __init__(self, decoder: Decoder, persistent: PersistentDecoder | None, key: SearchKey, eos: int) -> None:
        self._decoder, self._mode = decoder, key.mode
        self._groups = [empty_group(decoder, *sizes) for sizes in key.groups]
        self._device, rows_per_slot = decoder.like.device, key.mode.rows_per_sequence
        slot_tiles: Tensor | None = None
        if key.prefixes is None:  # a slot's rows see one prefix, which changes with its sequence
            of_slots = [[slot * rows_per_slot, rows_per_slot, 0] for slot in range(key.slots)]
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

    @property
    def is_persistent(self) -> bool:
        """True if the persistent kernel takes all steps."""
        return self._persistent is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the prefixes and of the keys and values of text."""
        arrays = [x for group in self._groups for x in (group.keys, group.values, group.k_scale, group.v_scale)]
        return sum(x.nbytes for x in (*arrays, self._store.keys, self._store.values) if x is not None)

    def run(
        self,
        groups: Sequence[Sequence[CudaPrefix | None]],
        prefixes: Sequence[PrefixIndex],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        on_token: TokenCallback | None = None,
    ) -> tuple[list[list[Found]], int]:
        """Search with native ``options``; return results as ``_C.Search.results`` does, and the number of steps.

        ``prompts[i]`` is continued on the prefix at ``prefixes[i]`` of ``groups``. ``on_token`` is for greedy search by
        the persistent kernel, all rows together: see ``Engine.generate``.

        Raises:
            ValueError: the logits of a row were not numbers.
            EngineError: the blocks of the persistent kernel could not run together.
        """
        for kept, images in zip(self._groups, groups, strict=True):
            stack(images, out=kept)
        state, limit = self._state, options["max_new_tokens"]
        state.ask(prompts, [image for _, image in prefixes], options)
        self._start(self._begin, self._capture)
        self._store_prompts(prompts, prefixes)
        if self._persistent is not None:
            return self._run_persistent(self._persistent, options, on_token)
        self._events.clear()
        sequences, steps = len(prompts) * self._mode.sequences_per_prompt, 0
        rounds = -(-sequences // state.size.slots)  # sequences in a slot, if all are as long as they may be
        while steps < rounds * limit and not self._has_ended():
            self._advance()
            steps += 1
        state.found.to_host()
        return state.results(options), steps

    def _run_persistent(
        self, persistent: PersistentRows, options: Mapping[str, Any], on_token: TokenCallback | None
    ) -> tuple[list[list[Found]], int]:
        state = self._state
        stream = TokenStream(state) if on_token else None
        persistent.enqueue(state, stream)
        steps = stream.report(on_token) if stream and on_token else options["max_new_tokens"]
        state.found.to_host()
        persistent.check()
        results = state.results(options)
        if on_token:
            results = [[_first(found, steps, state.eos) for found in sequences] for sequences in results]
        return results, max(len(ids) for sequences in results for ids, *_ in sequences)

    def _begin(self) -> None:
        self._state.given.to_device()
        cuda.start_search(self._state)

    def _store_prompts(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[PrefixIndex]) -> None:
        """Store keys and values of all prompt tokens but the last ones, which are fed in the first steps."""
        length, mode = self._state.size.max_text, self._mode
        each = mode.sequences_per_prompt * mode.rows_per_sequence * length  # entries of a prompt
        tokens = [(p, i, token) for p, ids in enumerate(prompts) for i, token in enumerate(ids[:-1])]
        if not tokens:
            return
        fed = [[token, i, i + 1, p * each] for p, i, token in tokens]
        ids, positions, text_len, first = torch.tensor(fed, dtype=torch.int32).T.contiguous().to(self._device)
        kv_index = first[:, None] + torch.arange(length, dtype=torch.int32, device=self._device)
        tiles = group_tiles([prefixes[p] for p, *_ in tokens], len(self._groups), self._device)
        independent = all(len(ids) <= 2 for ids in prompts)
        store = self._store if len(tokens) <= len(self._rows.ids) else self._store.for_rows(len(tokens))
        self._decoder.hidden(TextRows(ids, positions, kv_index, text_len, tiles, independent), self._groups, store)

    def _advance(self) -> None:
        self._step(lambda: self._choose(self._decoder.hidden(self._rows, self._groups, self._store)), self._capture)
        if self._device.type == "cuda":
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(self._device))

    def _choose(self, hidden: Tensor) -> None:
        """Choose the next token of every row, and advance the search by it."""
        state, mode = self._state, self._mode
        if mode.temperature is None:
            chosen = self._decoder.select(hidden, choices=mode.choices)
        else:
            chosen = self._decoder.select(hidden, temperature=mode.temperature, keys=state.row_keys, step=state.steps)
        cuda.advance_search(state, chosen, overlap=True)

    def _has_ended(self) -> bool:
        """Return whether all sequences have ended, once no more than a few steps are still enqueued."""
        if len(self._events) >= _MAX_STEPS_AHEAD:
            self._events.pop(0).synchronize()
        return bool(self._state.all_ended[0])


def _capture_on(device: torch.device, enqueue: Any) -> torch.cuda.CUDAGraph:
    return capture(enqueue, stream=torch.cuda.Stream(device))


def _first(found: Found, steps: int, eos: int) -> Found:
    """Cut a sequence that was stopped after so many tokens."""
    ids, values = found[0][:steps], found[1][:steps]
    return ids, values, sum(values), "stop" if ids[-1] == eos else "length"
