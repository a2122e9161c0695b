"""A search's state on a device, which ``ops.cuda.start_search`` and ``advance_search`` work on.

Shapes: N items of K rows each (K beams, else one row), R = N K rows, which search for M texts of at most L tokens,
prompt included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gitfast import _C

MOST_BEAMS = 16  # of csrc/cuda/search.h

_STOPPING: dict[object, int] = {False: 0, True: 1, "never": 2}
_NOT_NUMBERS = 2
_BEAM_WORDS = 5  # of FinishedBeam: score, log-probability, token, row, steps

Shapes = Mapping[str, tuple[torch.dtype, Sequence[int]]]
Found = tuple[list[int], list[float], float, str]  # token ids, log-probabilities, score, finish reason


class Mirrored:
    """Named arrays in one piece of device memory, and their copies on the host: one transfer moves all of them."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        begins = [0]
        for dtype, shape in shapes.values():
            words = math.prod(shape) * dtype.itemsize // 4
            begins.append(begins[-1] + -(-words // 4) * 4)  # each at a multiple of 16 bytes
        self._there = torch.zeros(begins[-1], dtype=torch.int32, device=device)
        self._here = torch.zeros(begins[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        self.device = _views(self._there, begins, shapes)
        self.host = {name: view.numpy() for name, view in _views(self._here, begins, shapes).items()}

    def to_device(self) -> None:
        """In the order of the stream: the host's copy may not change before that."""
        self._there.copy_(self._here, non_blocking=True)

    def to_host(self) -> None:
        """Waits for all that is enqueued."""
        self._here.copy_(self._there)


def _views(memory: Tensor, begins: Sequence[int], shapes: Shapes) -> dict[str, Tensor]:
    views = {}
    for begin, (name, (dtype, shape)) in zip(begins, shapes.items(), strict=False):
        words = math.prod(shape) * dtype.itemsize // 4
        views[name] = memory[begin : begin + words].view(dtype).view(tuple(shape))
    return views


class SearchSize(NamedTuple):
    """What the memory of a search depends on."""

    texts: int  # M, at most
    texts_per_prompt: int  # samples; 1 of beams
    items: int  # N
    rows_per_item: int  # K: beams, else 1
    draws: bool  # by chance
    max_text: int  # L

    @property
    def rows(self) -> int:
        """R."""
        return self.items * self.rows_per_item


class SearchState:
    """Arrays at addresses that stay, by the names of csrc/cuda/search.h.

    ``given`` are the host's arrays; ``found`` is what it looks at when all is over.
    """

    def __init__(self, size: SearchSize, eos: int, device: torch.device, tiles: Tensor | None = None) -> None:
        """``tiles``: of ``ops.cuda.attention_tiles``, one for each item, whose images are set as texts begin."""
        i32, f32 = torch.int32, torch.float32
        rows, length, prompts = size.rows, size.max_text, size.texts // size.texts_per_prompt
        records = size.texts * size.rows_per_item
        self.size, self.eos, self.tiles = size, eos, tiles
        self.rows_per_item, self.texts_per_prompt = size.rows_per_item, size.texts_per_prompt
        given: Shapes = {
            "prompt_len": (i32, (prompts,)),
            "last_tokens": (i32, (prompts,)),
            "images": (i32, (prompts,)),
            "settings": (i32, (8,)),
            "length_norms": (f32, (length + 1,)),
        }
        if size.draws:
            given = {"keys": (torch.int64, (size.texts,)), **given}
        found: Shapes = {
            "ended": (i32, (size.texts,)),
            "finished": (i32, (size.texts, size.rows_per_item, _BEAM_WORDS)),
            "tokens": (i32, (length, records)),
            "log_probs": (f32, (length, records)),
            "parents": (i32, (length, records)),
        }
        self.given, self.found = Mirrored(given, device), Mirrored(found, device)
        self.keys: Tensor | None = None
        for name, array in (self.given.device | self.found.device).items():
            setattr(self, name, array)
        self.ids, self.positions, self.text_len, self.image = (
            torch.zeros(rows, dtype=i32, device=device) for _ in range(4)
        )
        self.row_keys = torch.zeros(rows, dtype=torch.int64, device=device) if size.draws else None
        self.slots = torch.zeros((rows, length), dtype=i32, device=device)
        self.scores = torch.zeros(rows, dtype=f32, device=device)
        self.text, self.steps = (torch.zeros(size.items, dtype=i32, device=device) for _ in range(2))
        self.next_text, self.num_ended = (torch.zeros(1, dtype=i32, device=device) for _ in range(2))

    def ask(self, prompts: Sequence[Sequence[int]], images: Sequence[int], options: Mapping[str, Any]) -> None:
        """What a call of ``gitfast.engines.search.native_options`` asks for, to the host's copy of ``given``.

        ``images[i]``: which prefix ``prompts[i]`` sees.

        Raises:
            ValueError: the prompts are too few or more than there is memory for, or too long with the new tokens.
        """
        limit, count = options["max_new_tokens"], len(prompts)
        texts = count * self.texts_per_prompt
        if not self.size.items <= texts <= self.size.texts:
            raise ValueError(f"prompts: expected {self.size.items} to {self.size.texts} texts, got {texts}")
        for i, prompt in enumerate(prompts):
            if len(prompt) + limit > self.size.max_text:
                what = f"{len(prompt)} tokens and {limit} new ones"
                raise ValueError(f"prompts[{i}]: expected at most {self.size.max_text} tokens in all, got {what}")
        host = self.given.host
        host["prompt_len"][:count] = [len(prompt) for prompt in prompts]
        host["last_tokens"][:count] = [prompt[-1] for prompt in prompts]
        host["images"][:count] = images
        stopping = _STOPPING[options["early_stopping"]]
        if stopping == 2 and options["length_penalty"] <= 0:
            stopping = 0  # no beam gains by growing
        paper = options["length_penalty_form"] == "paper"
        host["settings"][:4] = limit, stopping, paper, options["top_k"]
        host["settings"][4:7].view(np.float32)[:] = options["temperature"], options["top_p"], options["min_p"]
        host["settings"][7] = texts
        if self.size.rows_per_item > 1:
            host["length_norms"][:] = _C.length_norms(options, self.size.max_text)
        if self.size.draws:
            host["keys"][:texts] = _C.sample_keys(options, prompts)

    def results(self, options: Mapping[str, Any]) -> list[list[Found]]:
        """From the host's copy of ``found``: the best sequences of every prompt, as ``_C.Search.results`` gives them.

        Raises:
            ValueError: a row's logits were no numbers.
        """
        limit, count = options["max_new_tokens"], options["num_return_sequences"]
        host, texts, beams = self.found.host, int(self.given.host["settings"][7]), self.rows_per_item
        for text in np.flatnonzero(host["ended"][:texts] == _NOT_NUMBERS):
            raise ValueError(f"logits: NaN in row {text * beams}")
        tokens, log_probs, parents = (
            host[name][:limit, : texts * beams].T.tolist() for name in ("tokens", "log_probs", "parents")
        )
        if beams == 1:
            rows = [self._row(*row) for row in zip(tokens, log_probs, strict=True)]
            return [rows[first : first + count] for first in range(0, texts, self.texts_per_prompt)]
        finished = host["finished"][:texts]
        scores, ends = finished.view(np.float32)[:, :, :2].tolist(), finished[:, :, 2:].tolist()
        return [
            [
                self._beam(tokens, log_probs, parents, *score, *end)
                for score, end in zip(*text, strict=True)
                if end[2] > 0
            ][:count]
            for text in zip(scores, ends, strict=True)
        ]

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
        """A finished beam, followed from its last token back."""
        ids, values = [token], [log_prob]
        for step in range(steps - 2, -1, -1):
            ids.append(tokens[row][step])
            values.append(log_probs[row][step])
            row = parents[row][step]
        return ids[::-1], values[::-1], score, "stop" if token == self.eos else "length"
