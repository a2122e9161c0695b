"""Decode whole sequences of a small random model: by one kernel, and step by step in float64, searched on the host."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gitfast import _C
from gitfast.engines.search import native_options
from gitfast.ops.cuda_search import Found, SearchSize, SearchState
from gitfast.types import GenerationOptions

from support.cuda.decode_cases import BOS, EOS, HEAD_DIM, VOCAB, DecodeCase, decode, make_case


@dataclass
class PersistentCase:
    """One prompt of one token per image; a row per beam or sample."""

    model: DecodeCase
    images: int
    options: dict[str, Any]
    token_stream: Tensor | None = None
    barrier: Tensor | None = None
    slots: int | None = None  # sequences searched for together, all without

    @property
    def rows_per_prompt(self) -> int:
        return max(self.options["num_beams"], self.options["num_return_sequences"])

    @property
    def beams(self) -> bool:
        return self.options["num_beams"] > 1

    def run(self, module: ModuleType, *, first_count: int = 0) -> list[list[Found]]:
        """Search by one kernel. ``first_count``: where the barrier's counter begins, zero for all to be well."""
        K, step = self.rows_per_prompt, self.model.step
        samples = 1 if self.beams else K
        slots, limit = self.slots or self.images * samples, self.options["max_new_tokens"]
        size = SearchSize(self.images * samples, samples, slots, K // samples, self.options["do_sample"], limit + 1)
        state = SearchState(size, EOS, torch.device("cpu"))
        state.ask([[BOS]] * self.images, range(self.images), self.options)
        state.given.to_device()
        module.start_search(state=state.arguments())
        choices = 2 * K if self.beams else 1 if not size.draws else self.options["top_k"] + 1
        layers, heads = len(self.model.layers), self.model.heads
        entries = size.sequences * size.rows_per_slot * size.max_text
        text = torch.full((layers, entries, heads, HEAD_DIM), torch.nan, dtype=self.model.dtype)
        self.token_stream = None
        if not self.beams and slots == size.sequences:
            self.token_stream = torch.zeros(1 + size.max_text * size.rows, dtype=torch.int32)
        self.barrier = torch.tensor([first_count, 0], dtype=torch.int32)
        prefix = {name: step[name] for name in ("k_prefix", "v_prefix", "k_scale", "v_scale")}
        decode(module, self.model, state, choices, self.barrier, self.token_stream, **prefix, k_text=text,
               v_text=text.clone())  # fmt: skip
        if self.barrier[1]:
            return []
        state.found.to_host()
        return state.results(self.options, range(self.images))

    def expected(self) -> list[list[Found]]:
        """Results of decoding step by step."""
        model, length = self.model, self.options["max_new_tokens"] + 1
        search = _C.Search(self.options, [[BOS]] * self.images, VOCAB)
        layers, heads = len(model.layers), model.heads
        store = [torch.zeros(layers, 1000, heads, HEAD_DIM, dtype=model.dtype) for _ in range(2)]
        model.before = (store[0], store[1])
        head = model.head.unpack().double()
        entries: list[list[int]] = [[] for _ in range(self.images)]
        ids, prompts, used = [BOS] * self.images, list(range(self.images)), 0
        while not search.done:
            entries = [[*row, used + i] for i, row in enumerate(entries)]
            used += len(entries)
            lengths = torch.tensor([len(row) for row in entries], dtype=torch.int32)
            model.step |= {
                "ids": torch.tensor(ids, dtype=torch.int32),
                "positions": lengths - 1,
                "text_len": lengths,
                "image": torch.tensor(prompts, dtype=torch.int32),
                "kv_index": torch.tensor([row + [0] * (length - len(row)) for row in entries], dtype=torch.int32),
            }
            x, keys, values = model.truth()
            for kept, new in zip(store, (keys, values), strict=True):
                kept[:, [row[-1] for row in entries]] = new.to(model.dtype)
            logits = x.to(model.dtype).double() @ head.T + model.head_bias.double()
            search.advance(logits.float())
            ids, prompts = list(search.tokens), list(search.items)
            entries = [entries[parent] for parent in search.parents]
        return [[(ids, values, score, reason) for ids, values, score, reason in item] for item in search.results()]


def make_persistent(images: int, *, model: dict[str, Any] | None = None, **options: Any) -> PersistentCase:
    """``model``: arguments of ``decode_cases.make_case``."""
    given = {"max_new_tokens": 6, "seed": 5} | options
    native = native_options(GenerationOptions(**given), EOS)
    longest = given["max_new_tokens"] + 1
    arguments: dict[str, Any] = {"dtype": torch.float16, "images": images, "longest": longest} | (model or {})
    return PersistentCase(make_case(1, **arguments), images, native)


def same(found: list[list[Found]], expected: list[list[Found]]) -> bool:
    """The same tokens and reasons; log-probabilities and scores up to rounding."""
    if [[(ids, reason) for ids, _, _, reason in item] for item in found] != [
        [(ids, reason) for ids, _, _, reason in item] for item in expected
    ]:
        return False
    for ours, theirs in zip(found, expected, strict=True):
        for (_, values, score, _), (_, others, other, _) in zip(ours, theirs, strict=True):
            distances = [abs(a - b) for a, b in zip([*values, score], [*others, other], strict=True)]
            if not max(distances) <= 0.02:
                return False
    return True
