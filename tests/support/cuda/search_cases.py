"""Searches over a made-up language, on the host by csrc/search and by the kernels. Device and emulation share."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from gitfast import _C
from gitfast.engines.search import native_options
from gitfast.ops.cuda import SearchState, Selection
from gitfast.ops.cuda_search import Found, SearchSize
from gitfast.types import GenerationOptions

EOS = 2
CONTEXTS = 64


@dataclass(frozen=True)
class Language:
    """Logits that depend on every token of a sequence, and on their order."""

    table: torch.Tensor  # float32 (CONTEXTS, V)

    @classmethod
    def random(cls, seed: int, vocab_size: int, *, eos_bias: float = 2.0) -> Language:
        table = torch.randn((CONTEXTS, vocab_size), generator=torch.Generator().manual_seed(seed)) * 2
        table[:, EOS] += eos_bias
        return cls(table)

    @property
    def vocab_size(self) -> int:
        return self.table.shape[1]

    def context(self, ids: Sequence[int]) -> int:
        """Return the row of the table that holds the logits after a sequence."""
        value = 0
        for token in ids:
            value = (value * 31 + token + 7) % 10007
        return value % CONTEXTS


# (contexts of the rows, state) -> what is chosen for them
Choose = Callable[[list[int], SearchState], Selection]


@dataclass
class Case:
    """One call of a search."""

    language: Language
    prompts: list[list[int]]
    options: dict[str, Any]  # native

    @property
    def limit(self) -> int:
        return int(self.options["max_new_tokens"])

    def on_host(self) -> list[list[Found]]:
        """Search with csrc/search, from all logits."""
        search = _C.Search(self.options, self.prompts, self.language.vocab_size)
        rows = self.prompts
        while not search.done:
            search.advance(self.language.table[[self.language.context(row) for row in rows]].numpy())
            rows = [rows[p] + [token] for p, token in zip(search.parents, search.tokens, strict=True)]
        return [[tuple(found) for found in item] for item in search.results()]

    def on_device(
        self, kernels: ModuleType, choose: Choose, device: str = "cpu", slots: int | None = None
    ) -> list[list[Found]]:
        """Search by the kernels, from what ``choose`` chooses; a row's tokens are looked up by its store entries.

        ``slots``: how many sequences are searched for together, all without; the next begin where others have ended.
        """
        state = self.state(device, slots)
        state.ask(self.prompts, [7 + i for i in range(len(self.prompts))], self.options)
        state.given.to_device()
        own_memory(state)
        kernels.start_search(state=state.arguments())
        rows_of_prompt = state.sequences_per_prompt * state.rows_per_slot
        text = {  # by entry
            i * rows_of_prompt * state.size.max_text + place: token
            for i, prompt in enumerate(self.prompts)
            for place, token in enumerate(prompt[:-1])
        }
        steps = 0
        while int(state.num_ended) < state.size.sequences:
            contexts = self._contexts(state, text)
            chosen = choose(contexts, state)
            choices = {"tokens": chosen.tokens, "log_probs": chosen.log_probs}
            draws = {"drawn": chosen.drawn, "drawn_log_probs": chosen.drawn_log_probs}
            kernels.advance_search(state=state.arguments(), **choices, **draws)
            num_ended = int(state.num_ended)  # which waits for a device
            assert int((state.ended != 0).sum()) == num_ended
            steps += 1
            assert steps <= state.size.sequences * self.limit, "no sequence goes on"
        for name, array in state.found.device.items():
            array.copy_(getattr(state, name))
        state.found.to_host()
        found = state.results(self.options, range(len(self.prompts)))
        if state.rows_per_slot == 1:
            lengths = [len(ids) for prompt in found for ids, *_ in prompt]
            assert steps == rounds(lengths, state.size.slots), "a slot was idle"
        return found

    def _contexts(self, state: SearchState, text: dict[int, int]) -> list[int]:
        """Return the contexts of all rows; ``text`` gets their tokens."""
        lengths, entries, ids = state.text_len.tolist(), state.kv_index.tolist(), state.ids.tolist()
        assert state.positions.tolist() == [length - 1 for length in lengths]
        contexts = [0] * state.size.rows  # of rows that search for nothing any more
        for row in range(state.size.rows):
            slot, own = row // state.rows_per_slot, entries[row][: lengths[row]]
            if (number := int(state.sequence[slot])) < 0:
                assert int(state.image[row]) == -1
                assert state.tiles is None or int(state.tiles[slot, 2]) == -1
                continue
            prompt = number // state.sequences_per_prompt
            assert lengths[row] == len(self.prompts[prompt]) + int(state.steps[slot])
            assert int(state.image[row]) == 7 + prompt
            if state.tiles is not None:
                assert state.tiles[slot].tolist() == [slot * state.rows_per_slot, state.rows_per_slot, 7 + prompt]
            if state.row_keys is not None:
                assert state.row_keys[row] == state.keys[number]
            assert text.setdefault(own[-1], ids[row]) == ids[row]
            contexts[row] = self.language.context([text[entry] for entry in own])
        return contexts

    def state(self, device: str, slots: int | None = None) -> SearchState:
        beams = self.options["num_beams"]
        samples = self.options["num_return_sequences"] if beams == 1 else 1
        sequences, longest = len(self.prompts) * samples, max(map(len, self.prompts)) + self.limit
        size = SearchSize(sequences, samples, slots or sequences, beams, self.options["do_sample"], longest)
        tiles = None
        if slots:
            tiles = torch.tensor([[i * beams, beams, -9] for i in range(slots)], dtype=torch.int32, device=device)
        state = SearchState(size, EOS, torch.device(device), tiles)
        for name in ("ids", "positions", "text_len", "kv_index", "image", "steps", *state.found.device):
            getattr(state, name).fill_(-9)
        state.scores.fill_(torch.nan)
        return state

    def error(self, found: list[list[Found]]) -> float:
        """The error of log-probabilities, in units of what float32 allows; infinite where anything else differs."""
        error = 0.0
        expected = self.on_host()
        for ours, theirs in zip(found, expected, strict=True):
            if [(ids, reason) for ids, _, _, reason in ours] != [(ids, reason) for ids, _, _, reason in theirs]:
                return float("inf")
            for (_, values, score, _), (_, right, right_score, _) in zip(ours, theirs, strict=True):
                pairs = [*zip(values, right, strict=True), (score, right_score)]
                error = max([error, *(abs(a - b) / (2e-5 + 1e-6 * abs(b)) for a, b in pairs)])
        return error

    def likeliest(self, count: int) -> Choose:
        """The likeliest tokens, with log-probabilities rounded as csrc/search rounds them."""
        table = self.language.table
        search = _C.Search({"max_new_tokens": 1, "eos_token_id": EOS}, [[0]] * CONTEXTS, self.language.vocab_size)
        search.advance(table.numpy())
        log_sums = -torch.tensor([values[0] for ((_, values, _, _),) in search.results()])
        log_probs = table - table.amax(1, keepdim=True) - log_sums[:, None]
        order = table.sort(dim=1, descending=True, stable=True).indices[:, :count]

        def choose(contexts: list[int], state: SearchState) -> Selection:
            tokens = order[contexts]
            values = log_probs[contexts].gather(1, tokens)
            device = state.ids.device
            return Selection(tokens.int().to(device), values.to(device), None, None, None)

        return choose


def rounds(lengths: Sequence[int], slots: int) -> int:
    """Count the steps of sequences of such lengths, when each slot takes the next as soon as it has done one."""
    busy = [0] * slots
    for length in lengths:
        heapq.heapreplace(busy, busy[0] + length)
    return max(busy)


def own_memory(state: SearchState) -> None:
    """Arrays of their own, so that an index beyond the end of one is seen."""
    for name in (*state.given.device, *state.found.device):
        setattr(state, name, getattr(state, name).clone())


def make_case(
    vocab_size: int = 20,
    prompts: Sequence[Sequence[int]] = ((3, 4, 1), (4,), (1, 3)),
    *,
    seed: int = 0,
    eos_bias: float = 2.0,
    **options: Any,
) -> Case:
    language = Language.random(seed, vocab_size, eos_bias=eos_bias)
    native = native_options(GenerationOptions(**{"max_new_tokens": 9, "seed": seed, **options}), EOS)
    return Case(language, [list(prompt) for prompt in prompts], native)


def equal_choices() -> tuple[Case, list[list[int]]]:
    """Two beams of tokens that are all as likely, but EOS: the lower row wins, then the lower token."""
    case = make_case(8, [[3]], num_beams=2, num_return_sequences=2, max_new_tokens=3)
    case.language.table[:] = 0
    case.language.table[:, EOS] = -9
    return case, [[0, 0, 0], [0, 0, 1]]
