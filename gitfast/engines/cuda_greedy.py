"""Greedy search on the device: steps follow one another without the host, on CUDA as one captured graph replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gitfast.engines.cuda_decoder import Decoder, PrefixGroup, TextRows, TextStore
from gitfast.engines.cuda_text import Place

_TOKENS_APART = 16  # texts this many tokens longer or shorter share a plan
_STEPS_AHEAD = 3  # that the device has to do while the host learns whether there is more: no step waits for the host


class GreedyPlan:
    """What greedy search over rows of one kind needs, at addresses that stay: a step is captured once.

    R rows of L tokens at most, prompts included; row r's i-th token has slot r * L + i.
    """

    def __init__(self, decoder: Decoder, groups: Sequence[PrefixGroup], tiles: list[Tensor], longest: int) -> None:
        """``groups`` for their shapes; ``tiles`` of the rows, per group; ``longest`` is L."""
        self._decoder = decoder
        rows = sum(int(x[:, 1].sum()) for x in tiles)
        self._groups = [PrefixGroup(_empty_like(g.keys), _empty_like(g.values)) for g in groups]
        self._store = TextStore.empty(decoder, rows * longest, rows)
        device = decoder.like.device
        slots = torch.arange(rows * longest, dtype=torch.int32, device=device).view(rows, longest)
        ids, positions, text_len = (torch.zeros(rows, dtype=torch.int32, device=device) for _ in range(3))
        self._rows = TextRows(ids, positions, slots, text_len, tiles, apart=True)
        self._tokens = torch.empty((longest, rows), dtype=torch.int32, device=device)
        self._log_probs = torch.empty((longest, rows), device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # how many tokens are chosen
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        # Copied to the host behind every step, and looked at without waiting: late, but true stays true.
        self._all_ended = torch.zeros(1, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._graph: torch.cuda.CUDAGraph | None = None
        self._events: list[torch.cuda.Event] = []

    @staticmethod
    def key(
        places: Sequence[Place], groups: Sequence[PrefixGroup], tokens: int
    ) -> tuple[tuple[Place, ...], tuple[torch.Size, ...], int]:
        """Which calls share a plan; the last is L for texts of ``tokens``, prompts included."""
        longest = -(-tokens // _TOKENS_APART) * _TOKENS_APART
        return tuple(places), tuple(group.keys.shape for group in groups), longest

    def run(
        self,
        groups: Sequence[PrefixGroup],
        prompts: Sequence[Sequence[int]],
        prompt_tiles: list[Tensor],
        limit: int,
        eos: int,
    ) -> tuple[Tensor, Tensor]:
        """Continue ``prompts`` by at most ``limit`` tokens: int32 tokens and log-probabilities (R, steps), on the CPU.

        What follows a row's end-of-sequence token is of no meaning; a token of -1 says that logits were no numbers.
        ``prompt_tiles``: tiles of all tokens of the prompts, one after another.
        """
        for kept, given in zip(self._groups, groups, strict=True):
            kept.keys.copy_(given.keys)
            kept.values.copy_(given.values)
        self._ended.zero_()
        self._step.zero_()
        self._all_ended.zero_()
        self._events.clear()
        self._choose(self._prompts(prompts, prompt_tiles), eos)
        steps = 1
        while steps < limit and not self._ended_by_now():
            self._advance(eos, steps)
            steps += 1
        tokens, log_probs = self._tokens[:steps].T.cpu(), self._log_probs[:steps].T.cpu()
        return tokens, log_probs

    def _prompts(self, prompts: Sequence[Sequence[int]], tiles: list[Tensor]) -> Tensor:
        """Hidden states (R, D) of the last token of each prompt."""
        device = self._rows.slots.device
        row = torch.tensor([r for r, ids in enumerate(prompts) for _ in ids])
        place = torch.tensor([i for ids in prompts for i in range(len(ids))], dtype=torch.int32)
        flat = torch.tensor([token for ids in prompts for token in ids], dtype=torch.int32)
        slots = self._rows.slots[row.to(device)]
        lengths = torch.tensor([len(ids) for ids in prompts], dtype=torch.int32)
        self._rows.text_len.copy_(lengths)
        self._rows.positions.copy_(lengths - 1)
        apart = all(len(ids) == 1 for ids in prompts)
        ids, positions, text_len = (x.to(device) for x in (flat, place, place + 1))
        rows = TextRows(ids, positions, slots, text_len, tiles, apart)
        store = self._store if apart else self._store.for_rows(len(flat))
        return self._decoder.hidden(rows, self._groups, store)[(lengths.cumsum(0) - 1).to(device)]

    def _choose(self, hidden: Tensor, eos: int) -> None:
        """The next token of every row, and all that is counted with it."""
        tokens, log_probs = self._decoder.greedy(hidden)
        self._tokens.index_copy_(0, self._step, tokens[None])
        self._log_probs.index_copy_(0, self._step, log_probs[None])
        self._step += 1
        self._rows.ids.copy_(tokens.clamp(min=0))
        self._ended |= (tokens == eos) | (tokens < 0)
        self._all_ended.copy_(self._ended.all()[None], non_blocking=True)

    def _advance(self, eos: int, steps: int) -> None:
        """One more step: on CUDA the first runs as it is, which loads all kernels, the second is captured."""
        if self._tokens.device.type != "cuda":
            return self._one_step(eos)
        if self._graph is not None:
            self._graph.replay()
        elif steps == 1:
            self._one_step(eos)
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._one_step(eos)
            self._graph = graph
            graph.replay()
        self._events.append(torch.cuda.Event())
        self._events[-1].record()

    def _ended_by_now(self) -> bool:
        """Whether all rows are known to have ended, when no more than a few steps are still to be done."""
        if len(self._events) >= _STEPS_AHEAD:
            self._events.pop(0).synchronize()
        return bool(self._all_ended)

    def _one_step(self, eos: int) -> None:
        self._rows.text_len.add_(1)
        self._rows.positions.add_(1)
        self._choose(self._decoder.hidden(self._rows, self._groups, self._store), eos)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
