"""Decode text rows by a kernel per operation: tiled weights, a store of text tokens, prefixes once per image.

Shapes: R rows (one token each), D hidden size, H heads, S entries of the text store, P prefix tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gitfast.engines.cuda.encoder import joined
from gitfast.ops import cuda
from gitfast.ops.cuda_weights import TiledWeight
from gitfast.torch_model import DecoderLayer, GitModel

WeightFormat = Literal["int8", "float8"] | None


@dataclass(frozen=True)
class PrefixGroup:
    """The prefixes of B images with the same number of tokens: keys and values (layers, B, H, P, head_dim).

    Stored as int8 where there are scales, (layers, B, H, P) each.
    """

    keys: Tensor
    values: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def splits(self, tiles: int) -> int:
        """Return how many blocks share a prefix: by its length, so that a row does not depend on the others."""
        _, _, heads, tokens, _ = self.keys.shape
        return cuda.prefix_splits(tokens, tiles, heads)


@dataclass(frozen=True)
class TextRows:
    """One step's tokens, all on the device: the next token of each beam or sequence, or those of whole prompts."""

    ids: Tensor  # int32 (R,)
    positions: Tensor  # int32 (R,)
    kv_index: Tensor  # int32 (R, longest): the entries of the text tokens a row sees, its own last
    text_len: Tensor  # int32 (R,)
    tiles: list[Tensor]  # per prefix group: the rows that read each of its images (ops.cuda.attention_tiles)
    independent: bool  # no row sees another's token of this step


@dataclass(frozen=True)
class TextStore:
    """Keys and values of text tokens, (layers, S, H, head_dim) each, and the scratch memory of a step."""

    keys: Tensor
    values: Tensor
    workspace: Tensor

    @classmethod
    def empty(cls, decoder: Decoder, entries: int, rows: int) -> TextStore:
        """Make memory for so many tokens, and for steps of ``rows``."""
        config, like = decoder.config, decoder.like
        heads = config.num_attention_heads
        shape = (config.num_hidden_layers, entries, heads, config.hidden_size // heads)
        keys, values = like.new_empty(shape), like.new_empty(shape)
        return cls(keys, values, _workspace(keys, rows))

    def for_rows(self, rows: int) -> TextStore:
        """Return the same store, for steps of more rows."""
        return TextStore(self.keys, self.values, _workspace(self.keys, rows))


def _workspace(keys: Tensor, rows: int) -> Tensor:
    return cuda.attention_workspace(keys.new_empty((rows, *keys.shape[2:])), cuda.DECODE_SPLITS)


class TiledLinear:
    """A linear layer with its weight in tiles."""

    def __init__(self, weight: Tensor, bias: Tensor, format: WeightFormat) -> None:
        self.weight, self.bias = TiledWeight.pack(weight, format), bias

    @classmethod
    def of(cls, layer: nn.Linear, format: WeightFormat) -> TiledLinear:
        """Take the weight and bias of a layer."""
        return cls(layer.weight.data, layer.bias.data, format)

    def __call__(
        self, x: Tensor, *, activation: Literal["none", "gelu"] = "none", residual: Tensor | None = None
    ) -> Tensor:
        return cuda.linear(x, self.weight, self.bias, activation=activation, residual=residual, overlap=True)

    def of_norm(
        self, norm: nn.LayerNorm, x: Tensor, *, activation: Literal["none", "gelu"] = "none"
    ) -> tuple[Tensor, Tensor]:
        """Return the normalised rows, and the layer of them."""
        given = norm.weight, norm.bias, self.weight, self.bias
        return cuda.norm_linear(x, *given, eps=norm.eps, activation=activation, overlap=True)


class TiledLayer:
    """One post-norm BERT layer over rows (R, D)."""

    def __init__(self, layer: DecoderLayer, format: WeightFormat) -> None:
        projections, tail = layer.attention["self"], layer.attention["output"]
        self.qkv = TiledLinear(*joined([projections[name] for name in ("query", "key", "value")]), format)
        self.num_heads = layer.num_heads
        self.out, self.norm1 = TiledLinear.of(tail["dense"], format), tail["LayerNorm"]
        self.fc1 = TiledLinear.of(layer.intermediate["dense"], format)
        self.fc2, self.norm2 = TiledLinear.of(layer.output["dense"], format), layer.output["LayerNorm"]

    def __call__(
        self,
        x: Tensor,
        norm: nn.LayerNorm | None,
        index: int,
        rows: TextRows,
        groups: Sequence[PrefixGroup],
        store: TextStore,
    ) -> Tensor:
        """Return rows to which ``norm2`` is still to be applied; of ``x`` that is ``norm``, if any."""
        x, qkv = (x, self.qkv(x)) if norm is None else self.qkv.of_norm(norm, x)
        y = self._attend(qkv.view(len(x), 3, self.num_heads, -1), index, rows, groups, store).flatten(1)
        x, inner = self.fc1.of_norm(self.norm1, self.out(y, residual=x), activation="gelu")
        return self.fc2(inner, residual=x)

    def _attend(
        self, qkv: Tensor, index: int, rows: TextRows, groups: Sequence[PrefixGroup], store: TextStore
    ) -> Tensor:
        """Attend, (R, 3, H, head_dim) -> (R, H, head_dim); store keys and values."""
        q, k, v = qkv.unbind(1)
        text: dict[str, Any] = {"k_text": store.keys[index], "v_text": store.values[index]}
        if rows.independent:
            text |= {"k_new": k, "v_new": v}
        else:  # rows of other blocks read them: they must be stored before
            own = rows.kv_index.gather(1, rows.text_len[:, None].long() - 1)[:, 0].long()
            text["k_text"].index_copy_(0, own, k)
            text["v_text"].index_copy_(0, own, v)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group, tiles in zip(groups, rows.tiles, strict=True):
            if len(tiles):
                scales = {"k_scale": group.k_scale, "v_scale": group.v_scale}
                cuda.prefix_attention(
                    q, group.keys[index], group.values[index], tiles, **text, kv_index=rows.kv_index,
                    text_len=rows.text_len, splits=group.splits(len(tiles)), workspace=store.workspace, out=out,
                    **{name: x if x is None else x[index] for name, x in scales.items()}, overlap=True,
                )  # fmt: skip
        return out


class Decoder:
    """The text half of a model, its weights laid out once; ``format`` stores the matrices in 8 bits."""

    def __init__(self, model: GitModel, format: WeightFormat, prefix_dtype: torch.dtype) -> None:
        """Lay out weights. ``prefix_dtype`` is that of the prefixes to be read: int8, or the model's."""
        self.config, self.like = model.config, model.output.weight.data
        self.prefix_dtype = prefix_dtype
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        if head_dim not in cuda.HEAD_DIMS:
            raise ValueError(f"head_dim: expected one of {cuda.HEAD_DIMS}, got {head_dim}")
        self.embeddings = model.git.embeddings
        self.layers = [TiledLayer(layer, format) for layer in model.git.encoder["layer"]]
        self.head = TiledLinear.of(model.output, format)

    def hidden(self, rows: TextRows, groups: Sequence[PrefixGroup], store: TextStore) -> Tensor:
        """Return the last layer's rows (R, D); stores their keys and values."""
        words, positions = self.embeddings.word_embeddings.weight, self.embeddings.position_embeddings.weight
        norm = self.embeddings.LayerNorm
        tables = (words, positions, norm.weight, norm.bias)
        x = cuda.embed_layer_norm(rows.ids, rows.positions, *tables, eps=norm.eps, overlap=True)
        last: nn.LayerNorm | None = None  # what is still to be applied to x
        for index, layer in enumerate(self.layers):
            x, last = layer(x, last, index, rows, groups, store), layer.norm2
        if last is None:
            return x
        return cuda.add_layer_norm(x, last.weight, last.bias, eps=last.eps, overlap=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of rows (R, D): float32 (R, V)."""
        selection = cuda.head_select(hidden, self.head.weight, self.head.bias, logits=True, overlap=True)
        assert selection.logits is not None
        return selection.logits

    def select(
        self,
        hidden: Tensor,
        *,
        choices: int = 1,
        temperature: float = 1.0,
        keys: Tensor | None = None,
        step: Tensor | None = None,
    ) -> cuda.Selection:
        """Choose tokens for rows (R, D): see ``ops.cuda.head_select``."""
        given: dict[str, Any] = {"choices": choices, "temperature": temperature, "keys": keys, "step": step}
        return cuda.head_select(hidden, self.head.weight, self.head.bias, **given, overlap=True)
