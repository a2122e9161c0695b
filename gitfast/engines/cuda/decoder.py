"""Text rows on a CUDA device: the decoder over packed weights, a store of text tokens, prefixes once per image.

Shapes: R rows (one token each), D hidden size, H heads, S slots of the text store, P prefix tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gitfast.engines.cuda.encoder import joined
from gitfast.ops import cuda
from gitfast.ops.cuda_weights import PackedWeight
from gitfast.torch_model import DecoderLayer, GitModel

WeightFormat = Literal["int8", "float8"] | None
_HEAD_DIMS = (16, 32, 64, 80, 128)  # of csrc/cuda/attention.cu


@dataclass(frozen=True)
class PrefixGroup:
    """The prefixes of B images with the same number of tokens: keys and values (layers, B, H, P, head_dim).

    Of int8 where there are scales, (layers, B, H, P) each.
    """

    keys: Tensor
    values: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def splits(self) -> int:
        """Blocks that share a prefix. By its length alone: a row must not depend on how many others there are."""
        return cuda.prefix_splits(self.keys.shape[3])


@dataclass(frozen=True)
class TextRows:
    """One step's tokens, all on the device: a beam's or a question's next token each, or those of whole prompts."""

    ids: Tensor  # int32 (R,)
    positions: Tensor  # int32 (R,)
    slots: Tensor  # int32 (R, longest): the text tokens a row sees, its own last
    text_len: Tensor  # int32 (R,)
    tiles: list[Tensor]  # per prefix group: which rows read which of its images (ops.cuda.attention_tiles)
    apart: bool  # no row sees another's token of this step


@dataclass(frozen=True)
class TextStore:
    """Keys and values of text tokens, (layers, S, H, head_dim) each, and the scratch memory of a step."""

    keys: Tensor
    values: Tensor
    workspace: Tensor

    @classmethod
    def empty(cls, decoder: Decoder, slots: int, rows: int) -> TextStore:
        """For so many tokens, and steps of ``rows``."""
        config, like = decoder.config, decoder.like
        heads = config.num_attention_heads
        shape = (config.num_hidden_layers, slots, heads, config.hidden_size // heads)
        keys, values = like.new_empty(shape), like.new_empty(shape)
        return cls(keys, values, _workspace(keys, rows))

    def for_rows(self, rows: int) -> TextStore:
        """The same store, for steps of more rows."""
        return TextStore(self.keys, self.values, _workspace(self.keys, rows))


def _workspace(keys: Tensor, rows: int) -> Tensor:
    return cuda.attention_workspace(keys.new_empty((rows, *keys.shape[2:])), rows, cuda.MOST_PREFIX_SPLITS)


class PackedLayer:
    """One post-norm BERT layer over rows (R, D)."""

    def __init__(self, layer: DecoderLayer, weights: WeightFormat) -> None:
        projections, tail = layer.attention["self"], layer.attention["output"]
        qkv, self.qkv_bias = joined([projections[name] for name in ("query", "key", "value")])
        self.qkv = PackedWeight.pack(qkv, weights)
        self.num_heads = layer.num_heads
        self.out, self.norm1 = PackedLinear(tail["dense"], weights), tail["LayerNorm"]
        self.fc1 = PackedLinear(layer.intermediate["dense"], weights)
        self.fc2 = PackedLinear(layer.output["dense"], weights)
        self.norm2 = layer.output["LayerNorm"]

    def __call__(
        self, x: Tensor, index: int, rows: TextRows, groups: Sequence[PrefixGroup], store: TextStore
    ) -> Tensor:
        qkv = cuda.linear(x, self.qkv, self.qkv_bias).view(len(x), 3, self.num_heads, -1)
        y = self._attend(qkv, index, rows, groups, store).flatten(1)
        x = _norm(self.norm1, self.out(y, residual=x))
        return _norm(self.norm2, self.fc2(self.fc1(x, activation="gelu"), residual=x))

    def _attend(
        self, qkv: Tensor, index: int, rows: TextRows, groups: Sequence[PrefixGroup], store: TextStore
    ) -> Tensor:
        """(R, 3, H, head_dim) -> (R, H, head_dim); stores keys and values."""
        q, k, v = qkv.unbind(1)
        keys, values = store.keys[index], store.values[index]
        k_new: Tensor | None = k
        v_new: Tensor | None = v
        if not rows.apart:  # rows of other blocks read them: they must be there before
            own = rows.slots.gather(1, rows.text_len[:, None].long() - 1)[:, 0].long()
            keys.index_copy_(0, own, k)
            values.index_copy_(0, own, v)
            k_new = v_new = None
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group, tiles in zip(groups, rows.tiles, strict=True):
            if len(tiles):
                cuda.prefix_attention(
                    q, group.keys[index], group.values[index], tiles, k_text=keys, v_text=values, slots=rows.slots,
                    text_len=rows.text_len, k_new=k_new, v_new=v_new, splits=group.splits, workspace=store.workspace,
                    k_scale=group.k_scale if group.k_scale is None else group.k_scale[index],
                    v_scale=group.v_scale if group.v_scale is None else group.v_scale[index], out=out,
                )  # fmt: skip
        return out


class PackedLinear:
    """A linear layer with its weight packed."""

    def __init__(self, layer: nn.Linear, weights: WeightFormat) -> None:
        self.weight, self.bias = PackedWeight.pack(layer.weight.data, weights), layer.bias.data

    def __call__(
        self, x: Tensor, *, activation: Literal["none", "gelu"] = "none", residual: Tensor | None = None
    ) -> Tensor:
        return cuda.linear(x, self.weight, self.bias, activation=activation, residual=residual)


class Decoder:
    """The text half of a model, its weights packed once; ``weights`` stores the matrices in 8 bits."""

    def __init__(self, model: GitModel, weights: WeightFormat, prefix_dtype: torch.dtype) -> None:
        """``prefix_dtype`` is that of the prefixes it will read: int8, or the model's."""
        self.config, self.like = model.config, model.output.weight.data
        self.prefix_dtype = prefix_dtype
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        if head_dim not in _HEAD_DIMS:
            raise ValueError(f"head_dim: expected one of {_HEAD_DIMS}, got {head_dim}")
        self.embeddings = model.git.embeddings
        self.layers = [PackedLayer(layer, weights) for layer in model.git.encoder["layer"]]
        self.head = PackedLinear(model.output, weights)

    def hidden(self, rows: TextRows, groups: Sequence[PrefixGroup], store: TextStore) -> Tensor:
        """The last layer's rows (R, D); their keys and values are stored."""
        words, positions = self.embeddings.word_embeddings.weight, self.embeddings.position_embeddings.weight
        norm = self.embeddings.LayerNorm
        x = cuda.embed_layer_norm(rows.ids, rows.positions, words, positions, norm.weight, norm.bias, eps=norm.eps)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rows, groups, store)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Of rows (R, D): float32 (R, V)."""
        logits = cuda.head_select(hidden, self.head.weight, self.head.bias, logits=True).logits
        assert logits is not None
        return logits

    def select(
        self,
        hidden: Tensor,
        *,
        choices: int = 1,
        temperature: float = 1.0,
        keys: Tensor | None = None,
        step: Tensor | None = None,
    ) -> cuda.Selection:
        """What the head chooses for rows (R, D): ``ops.cuda.head_select``."""
        weight, bias = self.head.weight, self.head.bias
        return cuda.head_select(hidden, weight, bias, choices=choices, temperature=temperature, keys=keys, step=step)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return cuda.add_layer_norm(x, norm.weight, norm.bias, eps=norm.eps)
