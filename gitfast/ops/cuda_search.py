"""Hold the state of a search on a device, for ``ops.cuda.start_search`` and ``advance_search``.

Shapes: N slots of K rows each (K beams, or one row), R = N K rows, which search for the sequences of at most L tokens,
prompt included, for which M places are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gitfast import _C

_LIMITS = _C.cuda_limits
# csrc/cuda/search.h: Stopping, Ended, and FinishedBeam: score, log-probability, token, row, steps
_STOPPING: dict[object, int] = {False: 0, True: 1, "never": 2}
_RUNNING, _NOT_NUMBERS = 0, 2

Shapes = Mapping[str, tuple[torch.dtype, Sequence[int]]]
Found = tuple[list[int], list[float], float, str]  # token ids, log-probabilities, score, finish reason


class Mirrored:
    """Named arrays in one piece of device memory, with copies on the host: one transfer moves all of them."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        begins = [0]
        for dtype, shape in shapes.values():
            words = math.prod(shape) * dtype.itemsize // 4
            begins.append(begins[-1] + -(-words // 4) * 4)  # each at a multiple of 16 bytes
        self._device_memory = torch.zeros(begins[-1], dtype=torch.int32, device=device)
        self._host_memory = torch.zeros(begins[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        self.device = _views(self._device_memory, begins, shapes)
        self.host = {name: view.numpy() for name, view in _views(self._host_memory, begins, shapes).items()}

    def to_device(self) -> None:
        """Copy all arrays, in stream order: the host's copy may not change before that."""
        self._device_memory.copy_(self._host_memory, non_blocking=True)

    def to_host(self) -> None:
        """Copy all arrays back, after everything enqueued so far."""
        self._host_memory.copy_(self._device_memory)


def _views(memory: Tensor, begins: Sequence[int], shapes: Shapes) -> dict[str, Tensor]:
    views = {}
    for begin, (name, (dtype, shape)) in zip(begins, shapes.items(), strict=False):
        words = math.prod(shape) * dtype.itemsize // 4
        views[name] = memory[begin : begin + words].view(dtype).view(tuple(shape))
    return views


class NotNumbersError(Exception):
    """The logits of a row were NaN or infinite, or all were -inf."""


class SearchSize(NamedTuple):
    """The sizes that the memory of a search depends on."""

    sequences: int  # M, at most
    sequences_per_prompt: int  # samples; 1 with beams
    slots: int  # N
    rows_per_slot: int  # K: beams, or 1
    draws: bool  # tokens are sampled
    max_text: int  # L

    @property
    def rows(self) -> int:
        """R."""
        return self.slots * self.rows_per_slot


_STATE = (
    "rows_per_slot", "sequences_per_prompt", "eos", "tiles", "ids", "positions", "text_len", "kv_index", "image",
    "row_keys", "scores", "sequence", "steps", "next_sequence", "num_ended", "ended",
)  # fmt: skip


class SearchState:
    """The arrays of csrc/cuda/search.h, by its names, at addresses that stay.

    ``given`` are the host's arrays; ``found`` are those it reads when sequences have ended. A prompt has a place there,
    and its sequences have as many as there are samples of it.
    """

    def __init__(self, size: SearchSize, eos: int, device: torch.device, tiles: Tensor | None = None) -> None:
        """Make memory. ``tiles``: one a slot, of image -1: the images are set as sequences begin."""
        i32, f32 = torch.int32, torch.float32
        rows, length, prompts = size.rows, size.max_text, size.sequences // size.sequences_per_prompt
        records = size.sequences * size.rows_per_slot
        self.size, self.eos, self.tiles = size, eos, tiles
        self.rows_per_slot, self.sequences_per_prompt = size.rows_per_slot, size.sequences_per_prompt
        given: Shapes = {
            "prompt_len": (i32, (prompts,)),
            "last_tokens": (i32, (prompts,)),
            "images": (i32, (prompts,)),
            "settings": (i32, (prompts, _LIMITS.SETTINGS_WORDS)),
            "queue": (i32, (size.sequences,)),
            "queued": (i32, (1,)),
        }
        if size.rows_per_slot > 1:
            given = {"length_norms": (f32, (prompts, length + 1)), **given}
        if size.draws:
            given = {"keys": (torch.int64, (size.sequences,)), **given}
        found: Shapes = {
            "finished": (i32, (size.sequences, size.rows_per_slot, _LIMITS.FINISHED_BEAM_WORDS)),
            "tokens": (i32, (length, records)),
            "log_probs": (f32, (length, records)),
            "parents": (i32, (length, records)),
        }
        self.given, self.found = Mirrored(given, device), Mirrored(found, device)
        self.keys: Tensor | None = None
        for name, array in (self.given.device | self.found.device).items():
            setattr(self, name, array)
        self.ids, self.positions, self.text_len = (torch.zeros(rows, dtype=i32, device=device) for _ in range(3))
        self.image = torch.full((rows,), -1, dtype=i32, device=device)
        self.row_keys = torch.zeros(rows, dtype=torch.int64, device=device) if size.draws else None
        self.kv_index = torch.zeros((rows, length), dtype=i32, device=device)
        self.scores = torch.zeros(rows, dtype=f32, device=device)
        self.sequence = torch.full((size.slots,), -1, dtype=i32, device=device)
        self.steps = torch.zeros(size.slots, dtype=i32, device=device)
        self.next_sequence, self.num_ended = (torch.zeros(1, dtype=i32, device=device) for _ in range(2))
        # In host memory, which the device writes to.
        self._ended = torch.zeros(size.sequences, dtype=i32, pin_memory=device.type == "cuda")
        self.ended = self._ended.numpy()

    @property
    def prompts(self) -> int:
        """Count the places of prompts."""
        return self.size.sequences // self.sequences_per_prompt

    def arguments(self) -> dict[str, Any]:
        """Return the arrays and sizes by name, as kernels take them."""
        return {name: getattr(self, name) for name in (*_STATE, *self.given.device, *self.found.device)}

    def ask(
        self,
        prompts: Sequence[Sequence[int]],
        images: Sequence[int],
        options: Mapping[str, Any],
        places: Sequence[int] | None = None,
    ) -> None:
        """Let sequences of prompts with native options wait, in the host's copy of ``given``.

        ``images[i]``: the prefix that ``prompts[i]`` sees; ``places[i]``: the place it takes, where no sequence is that
        has not been read. None: the first places.

        Raises:
            ValueError: there are more prompts than places, or they are too long with the new tokens.
        """
        limit, each = options["max_new_tokens"], self.sequences_per_prompt
        if len(prompts) > self.prompts:
            raise ValueError(f"prompts: expected at most {self.prompts}, got {len(prompts)}")
        for i, prompt in enumerate(prompts):
            if len(prompt) + limit > self.size.max_text:
                what = f"{len(prompt)} tokens and {limit} new ones"
                raise ValueError(f"prompts[{i}]: expected at most {self.size.max_text} tokens in all, got {what}")
        host, own = self.given.host, list(range(len(prompts)) if places is None else places)
        host["prompt_len"][own] = [len(prompt) for prompt in prompts]
        host["last_tokens"][own] = [prompt[-1] for prompt in prompts]
        host["images"][own] = images
        stopping = _STOPPING[options["early_stopping"]]
        if stopping == 2 and options["length_penalty"] <= 0:
            stopping = 0  # no beam gains by growing
        settings = np.zeros(_LIMITS.SETTINGS_WORDS, np.int32)
        settings[:4] = limit, stopping, options["length_penalty_form"] == "paper", options["top_k"]
        settings[4:].view(np.float32)[:] = options["temperature"], options["top_p"], options["min_p"]
        host["settings"][own] = settings
        if self.size.rows_per_slot > 1:
            host["length_norms"][own] = _C.length_norms(options, self.size.max_text)
        sequences = self.sequences_of(own)
        if self.size.draws:
            host["keys"][sequences] = _C.sample_keys(options, prompts)
        self.ended[sequences] = _RUNNING
        queued = int(host["queued"][0])
        host["queue"][[(queued + i) % self.size.sequences for i in range(len(own) * each)]] = sequences
        host["queued"][0] = queued + len(own) * each

    def sequences_of(self, places: Sequence[int]) -> list[int]:
        """List the sequences of the prompts at these places."""
        each = self.sequences_per_prompt
        return [place * each + i for place in places for i in range(each)]

    def ended_prompts(self) -> list[int]:
        """List the places of prompts whose sequences have all ended, and have not been let go."""
        return np.flatnonzero((self.ended.reshape(self.prompts, -1) != _RUNNING).all(1)).tolist()

    def let_go(self, place: int) -> None:
        """Make room for another prompt where one has ended."""
        self.ended[self.sequences_of([place])] = _RUNNING

    def stop(self, places: Sequence[int]) -> None:
        """Let the sequences of these prompts end at their next step, in the host's copy of ``given``."""
        self.given.host["settings"][list(places), 0] = 1

    def result(self, place: int, options: Mapping[str, Any]) -> list[Found]:
        """Read the best sequences of a prompt from the host's copy of ``found``, as ``_C.Search.results`` does.

        Raises:
            NotNumbersError: the logits of a row were not numbers.
        """
        limit, count = options["max_new_tokens"], options["num_return_sequences"]
        sequences, beams = self.sequences_of([place]), self.rows_per_slot
        if (self.ended[sequences] == _NOT_NUMBERS).any():
            raise NotNumbersError
        first = sequences[0] * beams
        records = slice(first, first + len(sequences) * beams)
        host = self.found.host
        tokens, log_probs = (host[name][:limit, records].T.tolist() for name in ("tokens", "log_probs"))
        if beams == 1:
            return [self._row(*row) for row in zip(tokens, log_probs, strict=True)][:count]
        parents, finished = (host["parents"][:limit, records].T - first).tolist(), host["finished"][sequences[0]]
        scores, ends = finished.view(np.float32)[:, :2].tolist(), finished[:, 2:].tolist()
        found = [
            self._beam(tokens, log_probs, parents, score, log_prob, token, row - first, steps)
            for (score, log_prob), (token, row, steps) in zip(scores, ends, strict=True)
            if steps > 0
        ]
        return found[:count]

    def results(self, options: Mapping[str, Any], places: Sequence[int]) -> list[list[Found]]:
        """Read the results of the prompts of a call.

        Raises:
            ValueError: the logits of a row were not numbers.
        """
        found = []
        for i, place in enumerate(places):
            try:
                found.append(self.result(place, options))
            except NotNumbersError:
                raise ValueError(f"logits: NaN in row {i * self.sequences_per_prompt * self.rows_per_slot}") from None
        return found

    def _row(self, ids: list[int], values: list[float]) -> Found:
        if self.eos in ids:
            ids = ids[: ids.index(self.eos) + 1]
        values = values[: len(ids)]
        return ids, values, sum(values), "stop" if ids[-1] == self.eos else "length"

    def _beam(
        self,
        tokens: list[list[int]],
        log_probs: list[list[float]],
        parents: list[list[int]],
        score: float,
        log_prob: float,
        token: int,
        row: int,
        steps: int,
    ) -> Found:
        """Follow a finished beam from its last token back."""
        ids, values = [token], [log_prob]
        for step in range(steps - 2, -1, -1):
            ids.append(tokens[row][step])
            values.append(log_probs[row][step])
            row = parents[row][step]
        return ids[::-1], values[::-1], score, "stop" if token == self.eos else "length"
