"""A search's state on a device, which ``ops.cuda.start_search`` and ``advance_search`` work on.

Shapes: N items of K rows each (K beams, else one row), R = N K rows, L tokens of a text at most, prompt included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
        self.device, self.host = _views(self._there, begins, shapes), _views(self._here, begins, shapes)

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

    prompts: int
    rows_per_prompt: int  # K beams, or samples
    beams: bool
    draws: bool  # by chance
    max_text: int  # L

    @property
    def rows(self) -> int:
        """R."""
        return self.prompts * self.rows_per_prompt


class SearchState:
    """Arrays at addresses that stay, by the names of csrc/cuda/search.h.

    ``given`` are the host's arrays, those of ``more`` among them; ``found`` is what it looks at when all is over.
    """

    def __init__(self, size: SearchSize, eos: int, device: torch.device, more: Shapes | None = None) -> None:
        i32, f32 = torch.int32, torch.float32
        rows, length = size.rows, size.max_text
        self.size, self.eos, self.rows_per_prompt = size, eos, size.rows_per_prompt
        self.rows_per_item = size.rows_per_prompt if size.beams else 1
        items = rows // self.rows_per_item
        given: Shapes = {
            "prompt_len": (i32, (size.prompts,)),
            "last_tokens": (i32, (size.prompts,)),
            "settings": (i32, (7,)),
            "length_norms": (f32, (length + 1,)),
            "num_ended": (i32, (1,)),
        }
        if size.draws:
            given = {"keys": (torch.int64, (rows,)), **given}
        found: Shapes = {
            "ended": (i32, (items,)),
            "finished": (i32, (items, self.rows_per_item, _BEAM_WORDS)),
            "tokens": (i32, (length, rows)),
            "log_probs": (f32, (length, rows)),
            "parents": (i32, (length, rows)),
        }
        self.given, self.found = Mirrored({**given, **(more or {})}, device), Mirrored(found, device)
        self.keys: Tensor | None = None
        for name, array in (self.given.device | self.found.device).items():
            setattr(self, name, array)
        self.ids, self.positions, self.text_len = (torch.zeros(rows, dtype=i32, device=device) for _ in range(3))
        self.num_ended: Tensor = self.given.device["num_ended"]
        self.slots = torch.zeros((rows, length), dtype=i32, device=device)
        self.scores = torch.zeros(rows, dtype=f32, device=device)
        self.steps = torch.zeros(items, dtype=i32, device=device)

    @property
    def items(self) -> int:
        """N."""
        return len(self.steps)

    def ask(self, prompts: Sequence[Sequence[int]], options: Mapping[str, Any]) -> None:
        """What a call of ``gitfast.search.native_options`` asks for, to the host's copy of ``given``.

        Raises:
            ValueError: the prompts are not as many as there is memory for, or too long with the new tokens.
        """
        limit = options["max_new_tokens"]
        if len(prompts) != self.size.prompts:
            raise ValueError(f"prompts: expected {self.size.prompts}, got {len(prompts)}")
        for i, prompt in enumerate(prompts):
            if len(prompt) + limit > self.size.max_text:
                what = f"{len(prompt)} tokens and {limit} new ones"
                raise ValueError(f"prompts[{i}]: expected at most {self.size.max_text} tokens in all, got {what}")
        host = self.given.host
        host["prompt_len"].copy_(torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32))
        host["last_tokens"].copy_(torch.tensor([prompt[-1] for prompt in prompts], dtype=torch.int32))
        stopping = _STOPPING[options["early_stopping"]]
        if stopping == 2 and options["length_penalty"] <= 0:
            stopping = 0  # no beam gains by growing
        paper = options["length_penalty_form"] == "paper"
        host["settings"][:4] = torch.tensor([limit, stopping, int(paper), options["top_k"]], dtype=torch.int32)
        shares = [options["temperature"], options["top_p"], options["min_p"]]
        host["settings"][4:].view(torch.float32).copy_(torch.tensor(shares))
        host["num_ended"].zero_()
        if self.size.beams:
            host["length_norms"].copy_(torch.tensor(_C.length_norms(options, self.size.max_text)))
        if self.size.draws:
            host["keys"].copy_(torch.tensor(_C.sample_keys(options, prompts)))

    def results(self, steps: int, count: int) -> list[list[Found]]:
        """After so many steps: of every prompt up to ``count`` sequences, as ``_C.Search.results`` gives them.

        Raises:
            ValueError: a row's logits were no numbers.
        """
        self.found.to_host()
        host = self.found.host
        for item, ended in enumerate(host["ended"].tolist()):
            if ended == _NOT_NUMBERS:
                raise ValueError(f"logits: NaN in row {item * self.rows_per_item}")
        tokens, log_probs = host["tokens"][:steps].tolist(), host["log_probs"][:steps].tolist()
        if not self.size.beams:
            rows = [self._row(tokens, log_probs, row) for row in range(self.size.rows)]
            return [rows[first : first + count] for first in range(0, len(rows), self.rows_per_prompt)]
        parents = host["parents"][:steps].tolist()
        scores, places = host["finished"].view(torch.float32)[:, :, :2].tolist(), host["finished"][:, :, 2:].tolist()
        return [
            [
                self._beam(tokens, log_probs, parents, *score, *place)
                for score, place in zip(*item, strict=True)
                if place[2] > 0
            ][:count]
            for item in zip(scores, places, strict=True)
        ]

    def _row(self, tokens: list[list[int]], log_probs: list[list[float]], row: int) -> Found:
        ids = [step[row] for step in tokens]
        if self.eos in ids:
            ids = ids[: ids.index(self.eos) + 1]
        values = [step[row] for step, _ in zip(log_probs, ids, strict=False)]
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
            ids.append(tokens[step][row])
            values.append(log_probs[step][row])
            row = parents[step][row]
        return ids[::-1], values[::-1], score, "stop" if token == self.eos else "length"
