"""Encode images on a CUDA device: pixels to patches, patches to keys and values of every decoder layer.

Matrix products of many rows are torch's (cuBLAS), attention among image tokens its scaled_dot_product_attention; bias,
activation and norm after a product are one kernel of ours each. Nothing here waits for the device or chooses by values:
a call is a fixed sequence of kernels, which a graph can hold.

Shapes: B images or clips of T frames (1 of an image), F = B * T frames, N tokens of a frame (its class token and
patches), K values of a patch, P = T * N tokens of a prefix, L decoder layers, H heads, D the vision
encoder's hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gitfast import _C
from gitfast.ops import cuda
from gitfast.torch_model import DecoderLayer, GitModel, VisionLayer, merge_heads
from gitfast.types import Normalization

PrefixDtype = Literal["auto", "int8"]
_INT8_HEAD_DIM: int = _C.cuda_limits.INT8_HEAD_DIM


class ImageKind(NamedTuple):
    """The shape that images of one batch share."""

    frames: int | None  # frames of a clip; None: single images, which get no temporal embedding
    rows: int  # patches
    columns: int

    @property
    def tokens(self) -> int:
        """P, of an image or clip."""
        return (self.frames or 1) * (1 + self.rows * self.columns)


class EncoderInputs(NamedTuple):
    """The inputs of ``Encoder``: patches, and tensors that are the same for all images of a kind."""

    patches: Tensor  # (F, N, K)
    table: Tensor  # (N, D): positions, and the class token
    rows: Tensor  # int32 (F * N,): 0, 1, 2, ...
    positions: Tensor  # int32 (F * N,): each row's place in its frame, which is its row of the table


class PrefixBatch(NamedTuple):
    """Keys and values of B images, image by image: (B, 2, L, H, P, head_dim).

    Stored as int8 where there are scales, float32 (B, 2, L, H, P): the factors of a token's integers.
    """

    data: Tensor
    scales: Tensor | None


class Encoder:
    """The vision transformer, the projection, and the decoder layers over image tokens."""

    def __init__(
        self, model: GitModel, prefix_dtype: PrefixDtype = "auto", normalization: Normalization | None = None
    ) -> None:
        """Take the model's tensors, without copying. ``normalization`` is that of pixels given as bytes.

        Raises:
            ValueError: attention does not take ``prefix_dtype`` with this model.
        """
        config = model.config
        vision: Any = model.git.image_encoder["vision_model"]
        self.config, self.like = config, model.output.weight.data
        self.head_dim = config.hidden_size // config.num_attention_heads
        if prefix_dtype == "int8" and self.head_dim != _INT8_HEAD_DIM:
            raise ValueError(f"prefix_dtype: int8 needs a head_dim of {_INT8_HEAD_DIM}, got {self.head_dim}")
        self.prefix_dtype = torch.int8 if prefix_dtype == "int8" else self.like.dtype
        self._embeddings = vision.embeddings
        # Rows of a matrix product begin at 16 bytes: patches of 14 x 14 x 3 values end in zeros.
        kernel = self._embeddings.patch_embedding.weight.data.permute(0, 2, 3, 1).flatten(1)
        self._patch_weight = F.pad(kernel, (0, -kernel.shape[1] % 8)).contiguous()
        self._norms = vision.pre_layrnorm, vision.post_layernorm
        self._vision: list[FusedVisionLayer] = []
        missing = torch.zeros(config.vision_config.hidden_size, device=self.like.device)
        for layer in vision.encoder["layers"]:
            self._vision.append(FusedVisionLayer(layer, missing))
            missing = missing + layer.self_attn["out_proj"].bias.float() + layer.mlp["fc2"].bias.float()
        self._missing = missing.to(self.like.dtype)  # the vector that the last layer's rows lack
        self._projection = model.git.visual_projection["visual_projection"]
        self._decoder = [FusedPrefixLayer(layer) for layer in model.git.encoder["layer"]]
        self._temporal: Tensor | None = None  # (frames, 1, D)
        if config.num_image_with_embedding is not None:
            self._temporal = torch.cat([x.data for x in model.git.img_temporal_embedding])

        self._affine: list[Tensor] | None = None  # factor and shift of a byte, float32 (3,) each
        if normalization is not None:
            self._affine = [torch.tensor(values, device=self.like.device) for values in normalization.affine()]

    def inputs(self, images: int, kind: ImageKind) -> EncoderInputs:
        """Make memory for ``unfold``: zeros, which the rows of class tokens and the ends of others stay."""
        frames, tokens = images * (kind.frames or 1), 1 + kind.rows * kind.columns
        patches = self.like.new_zeros((frames, tokens, self._patch_weight.shape[1]))
        table = self._embeddings.positions(kind.rows, kind.columns).clone()
        table[0] += self._embeddings.class_embedding
        rows = torch.arange(frames * tokens, dtype=torch.int32, device=table.device)
        return EncoderInputs(patches, table, rows, rows % tokens)

    def prefixes(self, images: int, kind: ImageKind) -> PrefixBatch:
        """Make memory for the results of a call."""
        config = self.config
        shape = (images, 2, config.num_hidden_layers, config.num_attention_heads, kind.tokens)
        data = self.like.new_empty((*shape, self.head_dim), dtype=self.prefix_dtype)
        quantized = self.prefix_dtype == torch.int8
        return PrefixBatch(data, self.like.new_empty(shape, dtype=torch.float32) if quantized else None)

    def unfold(self, pixels: Tensor, inputs: EncoderInputs, kind: ImageKind) -> None:
        """Copy pixels into the patches of as many frames, by one kernel.

        float32 (F, 3, height, width), normalised; or bytes (F, height, width, 3), normalised here in float32, before
        the one rounding.
        """
        edge, rows, columns = self.config.vision_config.patch_size, kind.rows, kind.columns
        patches = inputs.patches[: len(pixels), 1:, : 3 * edge * edge]
        patches = patches.unflatten(2, (edge, edge, 3)).unflatten(1, (rows, columns))
        last = pixels if pixels.dtype == torch.uint8 else pixels.permute(0, 2, 3, 1)  # channels last
        last = last[:, : rows * edge, : columns * edge].unflatten(2, (columns, edge)).unflatten(1, (rows, edge))
        last = last.transpose(2, 3)  # (F, rows, columns, edge, edge, 3)
        if pixels.dtype != torch.uint8:
            patches.copy_(last)
        else:
            assert self._affine is not None
            factor, shift = self._affine
            torch.addcmul(shift, last, factor, out=patches)

    def __call__(self, inputs: EncoderInputs, kind: ImageKind, out: PrefixBatch) -> None:
        """Fill ``out`` from unfolded patches."""
        frames, tokens, _ = inputs.patches.shape
        before, after = self._norms
        # The product of a class token's row is zero: only the table's value is left.
        x = F.linear(inputs.patches.flatten(0, 1), self._patch_weight)
        x = cuda.embed_layer_norm(
            inputs.rows, inputs.positions, x, inputs.table, before.weight, before.bias, eps=before.eps
        ).view(frames, tokens, -1)
        for vision_layer in self._vision:
            vision_layer(x)
        x = _add_norm(after, x.flatten(0, 1), bias=self._missing).view_as(x)
        if kind.frames is not None:
            assert self._temporal is not None
            x = x.unflatten(0, (-1, kind.frames)) + self._temporal[: kind.frames]
        x = self._projection(x.reshape(len(out.data), kind.tokens, -1))
        data = out.data if out.scales is None else torch.empty_like(out.data, dtype=x.dtype)
        for index, layer in enumerate(self._decoder):
            keys_values = layer.keys_values(x)
            data[:, :, index] = keys_values
            if layer is not self._decoder[-1]:  # nothing reads the image rows that the last layer would make
                x = layer(x, keys_values)
        if out.scales is not None:
            _quantize(data, out)


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Concatenate the weights and biases of layers into those of one product."""
    return torch.cat([layer.weight.data for layer in layers]), torch.cat([layer.bias.data for layer in layers])


def _heads(x: Tensor, num_heads: int, parts: int) -> Tensor:
    """Split heads: (B, N, parts * D) -> (B, parts, H, N, head_dim)."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(0, 2, 3, 1, 4)


class FusedVisionLayer:
    """One pre-norm CLIP block on rows (F, N, D), in place.

    Products are added to the rows by the matrix product itself, which has no place for their biases as well. So rows
    lack the biases that were to be added so far: always the same vector, which each norm adds as it reads them.
    """

    def __init__(self, layer: VisionLayer, missing: Tensor) -> None:
        """Take a block's weights. ``missing``: the vector that the rows lack at first, float32 (D,)."""
        self.num_heads = layer.num_heads
        projections: Any = layer.self_attn
        self.qkv_weight, self.qkv_bias = joined([projections[f"{name}_proj"] for name in "qkv"])
        out: Any = projections["out_proj"]
        self.out_weight, dtype = out.weight, out.weight.dtype
        self.fc1, self.fc2 = layer.mlp["fc1"], layer.mlp["fc2"]
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.missing1, self.missing2 = missing.to(dtype), (missing + out.bias.float()).to(dtype)

    def __call__(self, x: Tensor) -> None:
        rows = x.flatten(0, 1)  # a view
        y = _add_norm(self.norm1, rows, bias=self.missing1).view_as(x)
        q, k, v = _heads(F.linear(y, self.qkv_weight, self.qkv_bias), self.num_heads, 3).unbind(1)
        y = merge_heads(F.scaled_dot_product_attention(q, k, v)).flatten(0, 1)
        rows.addmm_(y, self.out_weight.T)
        y = _add_norm(self.norm2, rows, bias=self.missing2)
        y = cuda.bias_quick_gelu(F.linear(y, self.fc1.weight), self.fc1.bias)
        rows.addmm_(y, self.fc2.weight.T)


class FusedPrefixLayer:
    """One post-norm BERT layer over image rows, (B, P, D) -> (B, P, D)."""

    def __init__(self, layer: DecoderLayer) -> None:
        projections, tail = layer.attention["self"], layer.attention["output"]
        self.num_heads = layer.num_heads
        self.query = projections["query"]
        self.kv_weight, self.kv_bias = joined([projections["key"], projections["value"]])
        self.out, self.norm1 = tail["dense"], tail["LayerNorm"]
        self.fc1, self.fc2, self.norm2 = layer.intermediate["dense"], layer.output["dense"], layer.output["LayerNorm"]

    def keys_values(self, x: Tensor) -> Tensor:
        """Compute the keys and values of rows x, (B, 2, H, P, head_dim)."""
        return _heads(F.linear(x, self.kv_weight, self.kv_bias), self.num_heads, 2)

    def __call__(self, x: Tensor, keys_values: Tensor) -> Tensor:
        (q,) = _heads(self.query(x), self.num_heads, 1).unbind(1)
        y = merge_heads(F.scaled_dot_product_attention(q, *keys_values.unbind(1)))
        rows = F.linear(y, self.out.weight).flatten(0, 1)
        rows = _add_norm(self.norm1, rows, bias=self.out.bias, residual=x.flatten(0, 1))
        y = cuda.bias_gelu(F.linear(rows, self.fc1.weight), self.fc1.bias)
        return _add_norm(self.norm2, F.linear(y, self.fc2.weight), bias=self.fc2.bias, residual=rows).view_as(x)


def _add_norm(norm: nn.LayerNorm, x: Tensor, *, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """Compute LayerNorm(x + bias + residual), rows (R, D)."""
    return cuda.add_layer_norm(x, norm.weight, norm.bias, bias=bias, residual=residual, eps=norm.eps)


def _quantize(x: Tensor, out: PrefixBatch) -> None:
    """Quantize keys and values (..., head_dim) to int8, each token and head scaled by its largest magnitude."""
    assert out.scales is not None
    largest = torch.linalg.vector_norm(x, ord=math.inf, dim=-1, dtype=torch.float32)
    torch.clamp_min(largest / 127, torch.finfo(torch.float32).tiny, out=out.scales)
    out.data.copy_((x / out.scales[..., None]).round_())
