"""Decode few rows by one kernel that stays on the device until all sequences have ended.

Shapes: R rows, C choices per row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gitfast.engines.cuda.decoder import Decoder, PrefixGroup, TextStore, TiledLinear
from gitfast.errors import EngineError
from gitfast.ops import cuda_persistent
from gitfast.ops.cuda_persistent import HEAD_DIM, MAX_ROWS
from gitfast.ops.cuda_search import SearchState
from gitfast.types import TokenCallback

DecodeMode = Literal["operations", "persistent"]
DECODE_MODES: tuple[DecodeMode, ...] = ("operations", "persistent")

_POLL_INTERVAL_S = 2e-5


class PersistentDecoder:
    """A decoder of up to ``MAX_ROWS`` rows that see prefixes of one length.

    A row's values depend on its own data alone, but sums are added in another order than in ``Decoder``.
    """

    def __init__(self, decoder: Decoder, weights: cuda_persistent.DecoderWeights) -> None:
        self.like, self.weights = decoder.like, weights
        self.usable = True  # until blocks have waited in vain for each other
        self.placement: Tensor | None = None  # int32 (blocks,): the multiprocessors that ran those of the last search

    @classmethod
    def create(cls, decoder: Decoder) -> PersistentDecoder | None:
        """Take over a decoder's weights; None where the kernel takes neither the model nor the device."""
        config = decoder.config
        if config.hidden_size != config.num_attention_heads * HEAD_DIM:
            return None
        layers = []
        for layer in decoder.layers:
            named = {"qkv": layer.qkv, "out": layer.out, "fc1": layer.fc1, "fc2": layer.fc2}
            given = {key: x for name, linear in named.items() for key, x in _arrays(name, linear).items()}
            norms: dict[str, Any] = {"1": layer.norm1, "2": layer.norm2}
            for number, end in norms.items():
                given |= {f"gamma{number}": end.weight.data, f"beta{number}": end.bias.data}
            layers.append(given)
        embeddings = decoder.embeddings
        norm = embeddings.LayerNorm
        try:
            weights = cuda_persistent.DecoderWeights(
                layers,
                _arrays("head", decoder.head),
                words=embeddings.word_embeddings.weight.data,
                positions=embeddings.position_embeddings.weight.data,
                gamma=norm.weight.data,
                beta=norm.bias.data,
                eps=norm.eps,
                heads=config.num_attention_heads,
            )
        except ValueError:  # a width or a depth that the kernel does not take
            return None
        return cls(decoder, weights) if weights.fits() else None

    def takes(self, rows: int, groups: int) -> bool:
        """Return whether so many rows, over prefixes of so many lengths, are decoded here."""
        return self.usable and rows <= MAX_ROWS and groups == 1


class PersistentRows:
    """The memory of a kernel for R rows, at addresses that stay."""

    def __init__(self, decoder: PersistentDecoder, rows: int, choices: int, group: PrefixGroup, store: TextStore):
        self._decoder, device = decoder, decoder.like.device
        self._tokens = torch.empty((rows, choices), dtype=torch.int32, device=device)
        self._log_probs = torch.empty((rows, choices), device=device)
        self._partials = decoder.weights.partials(rows)
        self._workspace = decoder.weights.workspace(rows, choices)
        self._barrier = torch.zeros(2, dtype=torch.int32, device=device)
        self._placement = torch.full((decoder.weights.blocks,), -1, dtype=torch.int32, device=device)
        self._broken = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._group, self._store = group, store

    def enqueue(self, state: SearchState, stream: TokenStream | None = None) -> None:
        """Enqueue all steps of a search that was started; ``stream`` gets their tokens as they are done."""
        self._barrier.zero_()
        group, store = self._group, self._store
        self._decoder.weights.decode(
            state,
            k_prefix=group.keys,
            v_prefix=group.values,
            k_text=store.keys,
            v_text=store.values,
            k_scale=group.k_scale,
            v_scale=group.v_scale,
            partials=self._partials,
            tokens=self._tokens,
            log_probs=self._log_probs,
            workspace=self._workspace,
            barrier=self._barrier,
            token_stream=None if stream is None else stream.memory,
            placement=self._placement,
        )
        self._decoder.placement = self._placement
        self._broken.copy_(self._barrier[1:], non_blocking=True)
        if stream is not None:
            stream.expect_end()

    def check(self) -> None:
        """Check that the kernel went through, once the device has done all enqueued work.

        Raises:
            EngineError: blocks waited in vain for others; later calls take the kernels of operations.
        """
        if self._broken.item():
            self._decoder.usable = False
            raise EngineError("cuda engine: blocks of one kernel waited in vain for each other: is the device shared?")


class TokenStream:
    """A receiver of the persistent kernel's tokens while it runs, in host memory that the device writes to."""

    def __init__(self, state: SearchState) -> None:
        rows, steps = state.size.rows, state.size.max_text
        self._device = state.ids.device
        memory = torch.zeros(1 + steps * rows, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        self.memory = memory.numpy()  # the number of steps that are done, and their tokens
        self._tokens, self._eos = self.memory[1:].reshape(steps, rows), state.eos
        self._end: torch.cuda.Event | None = None

    def expect_end(self) -> None:
        """Note that the kernel is enqueued: its end will come."""
        if self._device.type == "cuda":
            self._end = torch.cuda.Event()
            self._end.record(torch.cuda.current_stream(self._device))

    def report(self, on_token: TokenCallback) -> int:
        """Call ``on_token`` with every row's tokens as they come; return the number of steps reported.

        Ends when all rows have ended, or when ``on_token`` returns False. The kernel has ended when this returns or
        raises: it writes to this memory until then.
        """
        try:
            return self._report(on_token)
        finally:
            if self._end is not None:
                self._end.synchronize()

    def _report(self, on_token: TokenCallback) -> int:
        running, done = list(range(self._tokens.shape[1])), 0
        while running:
            over = self._end is None or self._end.query()  # asked first: then the memory holds everything
            for tokens in self._tokens[done : int(self.memory[0])].tolist():
                done += 1
                answers = [on_token(row, [tokens[row]]) for row in running if tokens[row] >= 0]
                if any(answer is False for answer in answers):
                    return done
                running = [row for row in running if tokens[row] >= 0 and tokens[row] != self._eos]
            if over:
                break
            time.sleep(_POLL_INTERVAL_S)
        return done


def persistent_rows(
    decoder: PersistentDecoder | None, rows: int, choices: int, groups: Sequence[PrefixGroup], store: TextStore
) -> PersistentRows | None:
    """Make the memory for rows that the persistent kernel takes; None where the kernels of operations decode them."""
    if decoder is None or not decoder.takes(rows, len(groups)):
        return None
    return PersistentRows(decoder, rows, choices, groups[0], store)


def _arrays(name: str, linear: TiledLinear) -> dict[str, Tensor | None]:
    return {name: linear.weight.data, f"{name}_scales": linear.weight.scales, f"{name}_bias": linear.bias}
