"""Decoding of a few rows in few kernels: two per layer (csrc/cuda/decode.h), or one for whole texts (caption.h).

Shapes: R rows, D hidden size, L tokens of a text at most, C choices of each row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gitfast.engines.cuda.decoder import Decoder, PackedLinear, PrefixGroup, TextRows, TextStore
from gitfast.errors import EngineError
from gitfast.ops import cuda
from gitfast.ops.cuda_search import SearchState
from gitfast.types import TokenCallback

# How rows are decoded: a kernel for each operation, two for each layer, or one for a whole text. What is not possible
# takes the one before.
DecodeMode = Literal["operations", "layers", "text"]
DECODE_MODES: tuple[DecodeMode, ...] = ("operations", "layers", "text")

MOST_ROWS, _HEAD_DIM = 8, 64
_BETWEEN_LOOKS = 2e-5  # seconds
CLUSTER = 8  # blocks that share a head: as many as every device with clusters has


class FusedDecoder:
    """The text half of a model for up to eight rows that see prefixes of one length.

    A row's values depend on its own data alone, but their sums are added in another order than those of ``Decoder``.
    """

    def __init__(self, decoder: Decoder, mode: DecodeMode) -> None:
        """Raises ValueError where the kernels do not take the model."""
        self.like, self.mode = decoder.like, mode
        embeddings, norm = decoder.embeddings, decoder.embeddings.LayerNorm
        layers = []
        for layer in decoder.layers:
            given: dict[str, Tensor | None] = {}
            for name, matrix in (("out", layer.out), ("fc1", layer.fc1), ("fc2", layer.fc2)):
                given |= _arrays(name, matrix)
            given |= {"qkv": layer.qkv.data, "qkv_scales": layer.qkv.scales, "qkv_bias": layer.qkv_bias}
            for i, end in ((1, layer.norm1), (2, layer.norm2)):
                given |= {f"gamma{i}": cast(Tensor, end.weight.data), f"beta{i}": cast(Tensor, end.bias.data)}
            layers.append(given)
        self.native: Any = cuda._kernels(self.like).Decoder(
            layers,
            decoder.config.num_attention_heads,
            embeddings.word_embeddings.weight.data,
            embeddings.position_embeddings.weight.data,
            norm.weight.data,
            norm.bias.data,
            norm.eps,
            CLUSTER,
            _arrays("head", decoder.head),
        )

    @classmethod
    def of(cls, decoder: Decoder, mode: DecodeMode) -> FusedDecoder | None:
        """That of a decoder, where ``mode`` asks for it and model and device are fit for it."""
        config, like = decoder.config, decoder.like
        heads, hidden = config.num_attention_heads, config.hidden_size
        if mode == "operations" or hidden != heads * _HEAD_DIM:
            return None
        device, sizes = like.device.index or 0, (hidden, config.intermediate_size, heads)
        if not cuda._kernels(like).can_decode(device, *sizes, CLUSTER):
            return None
        try:
            fused = cls(decoder, mode)
        except ValueError:
            return None
        if not fused.native.can_caption():
            fused.mode = "layers"
        return fused

    def plan(self, rows: int, groups: Sequence[PrefixGroup], store: TextStore) -> FusedRows | None:
        """For rows that see prefixes of the only group; None where there are more, or too many rows."""
        return FusedRows(self, rows, groups[0], store) if self.takes(rows, len(groups)) else None

    def takes(self, rows: int, groups: int) -> bool:
        """Whether so many rows, which see prefixes of so many lengths, are decoded here."""
        return rows <= MOST_ROWS and groups == 1


class FusedRows:
    """The memory of steps of R rows, at addresses that stay."""

    def __init__(self, decoder: FusedDecoder, rows: int, group: PrefixGroup, store: TextStore) -> None:
        self._decoder, self._native, self._like = decoder, decoder.native, decoder.like
        device = self._like.device
        self._num_rows = rows
        self._keys_values = (group.keys, group.values, store.keys, store.values, group.k_scale, group.v_scale)
        self._partials = torch.empty(self._native.workspace(rows), device=device)
        self._barrier = torch.zeros(2, dtype=torch.int32, device=device)
        self._broken = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._choices: tuple[Tensor, Tensor, Tensor] | None = None

    def hidden(self, rows: TextRows, image: Tensor) -> Tensor:
        """The last layer's rows (R, D) for their next tokens, as ``Decoder.hidden`` gives them.

        ``image``, int32 (R,): which prefix each row sees.
        """
        hidden = self._like.new_empty((len(rows.ids), self._like.shape[1]))
        text = (rows.ids, rows.positions, image, rows.slots, rows.text_len)
        self._native.step(*text, *self._keys_values, self._partials, hidden, cuda._stream(self._like))
        return hidden

    @property
    def runs_texts(self) -> bool:
        """Whether ``text`` can run."""
        return self._decoder.mode == "text"

    def text(self, state: SearchState, choices: int, listener: Listener | None = None) -> None:
        """Enqueues all steps of a search that was started, and tells ``listener`` their tokens as they are done."""
        if self._choices is None:
            shape, device = (self._num_rows, choices), self._like.device
            workspace = torch.empty(self._native.caption_workspace(*shape), dtype=torch.uint8, device=device)
            tokens = torch.empty(shape, dtype=torch.int32, device=device)
            self._choices = (tokens, torch.empty(shape, device=device), workspace)
        self._barrier.zero_()
        told = None if listener is None else listener.memory
        work = (self._partials, *self._choices, self._barrier, told)
        self._native.caption(state, *self._keys_values, *work, cuda._stream(self._like))
        self._broken.copy_(self._barrier[1:], non_blocking=True)
        if listener is not None:
            listener.expect_end()

    def check(self) -> None:
        """After the device has done what ``text`` enqueued.

        Raises:
            EngineError: blocks waited for others that did not come; later texts take the kernels of layers.
        """
        if self._broken.item():
            self._decoder.mode = "layers"
            raise EngineError("cuda engine: blocks of one kernel waited in vain for each other: is the device shared?")


class Listener:
    """Hears the tokens of a text kernel while it runs, through memory of the host that the device writes to."""

    def __init__(self, state: SearchState) -> None:
        rows, steps = state.size.rows, state.size.max_text
        self._device = state.ids.device
        told = torch.zeros(1 + steps * rows, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        self.memory = told.numpy()  # how many steps are done, and their tokens
        self._tokens, self._eos = self.memory[1:].reshape(steps, rows), state.eos
        self._end: torch.cuda.Event | None = None

    def expect_end(self) -> None:
        """The kernel is enqueued: it will end."""
        if self._device.type == "cuda":
            self._end = torch.cuda.Event()
            self._end.record(torch.cuda.current_stream(self._device))

    def report(self, on_token: TokenCallback) -> int:
        """Calls ``on_token`` with every row's tokens as they come; how many steps there were until all rows had ended,
        or it answered False."""
        going, done = list(range(self._tokens.shape[1])), 0
        while going:
            over = self._end is None or self._end.query()  # asked first: then what is told by now is all
            for tokens in self._tokens[done : int(self.memory[0])].tolist():
                done += 1
                answers = [on_token(row, [tokens[row]]) for row in going if tokens[row] >= 0]
                if any(answer is False for answer in answers):
                    return done
                going = [row for row in going if tokens[row] >= 0 and tokens[row] != self._eos]
            if over:
                break
            time.sleep(_BETWEEN_LOOKS)
        return done


def _arrays(name: str, matrix: PackedLinear) -> dict[str, Tensor | None]:
    return {name: matrix.weight.data, f"{name}_scales": matrix.weight.scales, f"{name}_bias": matrix.bias}
