"""Pixels to prefixes on a CUDA device: the reference model with fused layers in the places of its own.

Matrix products of many rows are torch's (cuBLAS), attention among image tokens its scaled_dot_product_attention; bias,
activation and norm after a product are one kernel of ours each. Shapes as in ``reference``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gitfast.engines.reference import DecoderLayer, GitModel, KeysValues, VisionLayer, merge_heads
from gitfast.ops import cuda


def fuse_layers(model: GitModel) -> None:
    """Replace the layers of ``model`` by fused ones with the same weights: then it only runs ``image_tokens`` and
    ``prefix``."""
    vision: Any = model.git.image_encoder["vision_model"].encoder
    text = model.git.encoder
    vision["layers"] = nn.ModuleList(FusedVisionLayer(layer) for layer in vision["layers"])
    text["layer"] = nn.ModuleList(FusedDecoderLayer(layer) for layer in text["layer"])


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """One weight and bias whose product is that of all layers, side by side."""
    return torch.cat([layer.weight.data for layer in layers]), torch.cat([layer.bias.data for layer in layers])


def _heads(x: Tensor, num_heads: int, parts: int) -> list[Tensor]:
    """(B, N, parts * D) -> as many of (B, H, N, head_dim)."""
    return list(x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))


class FusedVisionLayer(nn.Module):
    """One pre-norm CLIP block, (B, N, D) -> (B, N, D)."""

    def __init__(self, layer: VisionLayer) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        projections: Any = layer.self_attn
        self.qkv_weight, self.qkv_bias = joined([projections[f"{name}_proj"] for name in "qkv"])
        self.out, self.fc1, self.fc2 = layer.self_attn["out_proj"], layer.mlp["fc1"], layer.mlp["fc2"]
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(F.linear(self.norm1(x), self.qkv_weight, self.qkv_bias), self.num_heads, 3)
        x = x + self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        y = F.linear(self.norm2(x), self.fc1.weight).flatten(0, 1)
        return x + self.fc2(cuda.bias_quick_gelu(y, self.fc1.bias)).view_as(x)


class FusedDecoderLayer(nn.Module):
    """One post-norm BERT layer over image rows, (B, P, D) -> (B, P, D)."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        projections, tail = layer.attention["self"], layer.attention["output"]
        self.num_heads = layer.num_heads
        self.query = projections["query"]
        self.kv_weight, self.kv_bias = joined([projections["key"], projections["value"]])
        self.out, self.norm1 = tail["dense"], tail["LayerNorm"]
        self.fc1, self.fc2, self.norm2 = layer.intermediate["dense"], layer.output["dense"], layer.output["LayerNorm"]

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of rows x, each (B, H, P, head_dim)."""
        keys, values = _heads(F.linear(x, self.kv_weight, self.kv_bias), self.num_heads, 2)
        return keys, values

    def forward(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        (q,) = _heads(self.query(x), self.num_heads, 1)
        y = merge_heads(F.scaled_dot_product_attention(q, *keys_values))
        rows = _add_norm(self.norm1, F.linear(y, self.out.weight).flatten(0, 1), self.out.bias, x.flatten(0, 1))
        y = cuda.bias_gelu(F.linear(rows, self.fc1.weight), self.fc1.bias)
        return _add_norm(self.norm2, F.linear(y, self.fc2.weight), self.fc2.bias, rows).view_as(x)


def _add_norm(norm: nn.LayerNorm, x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """LayerNorm(x + bias + residual), rows (R, D)."""
    return cuda.add_layer_norm(x, norm.weight, norm.bias, bias=bias, residual=residual, eps=norm.eps)
