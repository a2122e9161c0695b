"""The CUDA kernels as functions of torch tensors on one device, enqueued on torch's current stream.

:mod:`gitfast.ops.reference` has the same functions in plain torch: what they compute. Tensors are float16 or bfloat16,
where not said otherwise; their rows may be strided, and begin at multiples of 16 bytes. Results are new tensors. A
row's result does not depend, to the bit, on the rows around it.

Every function raises ``ValueError`` naming the argument, what came and what was expected, and ``RuntimeError`` where
the build has no CUDA kernels or a launch fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal, NamedTuple

import torch

from gitfast import _C
from gitfast.ops.cuda_search import SearchSize, SearchState
from gitfast.ops.cuda_weights import PackedWeight

__all__ = [
    "MOST_PREFIX_SPLITS",
    "PackedWeight",
    "SearchSize",
    "SearchState",
    "Selection",
    "add_layer_norm",
    "advance_search",
    "attention_tiles",
    "attention_workspace",
    "bias_gelu",
    "bias_quick_gelu",
    "embed_layer_norm",
    "head_select",
    "linear",
    "prefix_attention",
    "prefix_splits",
    "start_search",
]

MOST_PREFIX_SPLITS = 4


class Selection(NamedTuple):
    """What :func:`head_select` chose."""

    tokens: torch.Tensor
    log_probs: torch.Tensor
    drawn: torch.Tensor | None
    logits: torch.Tensor | None
    drawn_log_probs: torch.Tensor | None


def add_layer_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``LayerNorm(x + bias + residual)`` over rows: x, residual (R, D); bias, gamma, beta (D,) -> (R, D).

    Also of float32. Mean and variance are taken in float32, in two passes.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _kernels(x).add_layer_norm(x, bias, residual, gamma, beta, eps, out, _stream(x))
    return out


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``gelu(x + bias)``, the exact one with erf: x (R, D), bias (D,) -> (R, D). Also of float32."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _kernels(x).bias_gelu(x, bias, out, _stream(x))
    return out


def bias_quick_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``y * sigmoid(1.702 y)`` of ``y = x + bias``: x (R, D), bias (D,) -> (R, D). Also of float32."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _kernels(x).bias_quick_gelu(x, bias, out, _stream(x))
    return out


def embed_layer_norm(
    ids: torch.Tensor,
    position_ids: torch.Tensor,
    words: torch.Tensor,
    positions: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    *,
    eps: float = 1e-12,
) -> torch.Tensor:
    """``LayerNorm(words[ids] + positions[position_ids])``: int32 ids (R,), tables (V, D) and (P, D) -> (R, D).

    Also of float32. A row whose id lies outside its table is NaN.
    """
    out = words.new_empty((len(ids), words.shape[1]))
    _kernels(words).embed_layer_norm(ids, position_ids, words, positions, gamma, beta, eps, out, _stream(words))
    return out


def linear(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    activation: Literal["none", "quick_gelu", "gelu"] = "none",
    residual: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """``activation(x @ weight.T + bias) + residual`` of few rows: x (R, K), bias (N,), residual (R, N) -> (R, N).

    Made for up to 16 rows, which read the weight once; every 16 more read it again. Sums are float32.
    ``overlap`` lets the kernel start while the one before it on the stream still runs, its weights on their way
    (programmatic dependent launch, compute capability 9.0 and later).
    """
    out = x.new_empty((x.shape[0], weight.shape[0]))
    data, scales = weight.data, weight.scales
    _kernels(x).linear(x, data, scales, bias, activation, residual, out, overlap, _stream(x))
    return out


def head_select(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    choices: int = 1,
    temperature: float = 1.0,
    keys: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    logits: bool = False,
    overlap: bool = False,
) -> Selection:
    """The likeliest tokens of each row by ``(x @ weight.T + bias) / temperature``, without logits in memory.

    Args:
        x: the last hidden states (R, K).
        weight: the head, (V, K).
        bias: (V,).
        choices: how many tokens per row, 1 to 64.
        temperature: what logits are divided by, positive.
        keys: int64 (R,): also draw one token per row by chance, which depends on its key and ``step`` alone.
        step: int32 (R,), with ``keys``: the number of each row's draw; on the device, so that one captured graph
            serves all steps.
        logits: also return the logits.
        overlap: as in :func:`linear`.

    Returns:
        int32 tokens and float32 log-probabilities (R, choices) in descending order, of equal ones the lower token
        first; drawn tokens (R,) and float32 logits (R, V) where asked for, and the drawn tokens' log-probabilities
        (R,) at a temperature of 1. Tokens of a row whose logits are not all finite numbers, or -inf, are -1, its
        log-probabilities NaN.
    """
    rows, vocab = x.shape[0], weight.shape[0]
    tokens = torch.empty((rows, choices), dtype=torch.int32, device=x.device)
    log_probs = torch.empty((rows, choices), dtype=torch.float32, device=x.device)
    drawn = None if keys is None else torch.empty(rows, dtype=torch.int32, device=x.device)
    drawn_log_probs = None if keys is None else torch.empty(rows, dtype=torch.float32, device=x.device)
    all_logits = torch.empty((rows, vocab), dtype=torch.float32, device=x.device) if logits else None
    kernels = _kernels(x)
    workspace = torch.empty(kernels.select_workspace(rows, vocab, choices), dtype=torch.uint8, device=x.device)
    head = (weight.data, weight.scales, vocab, bias, temperature)
    chosen = (tokens, log_probs, all_logits, keys, step, drawn, drawn_log_probs)
    kernels.head_select(x, *head, *chosen, workspace, overlap, _stream(x))
    return Selection(tokens, log_probs, drawn, all_logits, drawn_log_probs)


def start_search(state: SearchState) -> None:
    """Items of prompts that begin, by what the host gave: before their first step."""
    _kernels(state.ids).start_search(state, _stream(state.ids))


def advance_search(state: SearchState, chosen: Selection, *, overlap: bool = False) -> None:
    """One step of every item that has not ended: its rows go on with what was chosen for them, or end.

    What csrc/search does, on the device.

    Args:
        state: what changes; its rows are then those of the next step.
        chosen: for each row one token of greedy search, 2 K of K beams; for samples one drawn, or as many as may be
            drawn from, and one more for a tie. In the first step the choices of an item's prompt, for all of its rows.
        overlap: as in :func:`linear`.
    """
    choices = (chosen.tokens, chosen.log_probs, chosen.drawn, chosen.drawn_log_probs)
    _kernels(state.ids).advance_search(state, *choices, overlap, _stream(state.ids))


def attention_tiles(images: Sequence[int], tile_rows: Literal[16, 64] = 16) -> torch.Tensor:
    """Rows that :func:`prefix_attention` computes together: int32 (T, 3) of first row, number of rows, image.

    ``images``: the image of every row. Neighbours of one image share a tile, ``tile_rows`` of them at most.
    """
    tiles: list[list[int]] = []
    for row, image in enumerate(images):
        if tiles and tiles[-1][2] == image and tiles[-1][1] < tile_rows:
            tiles[-1][1] += 1
        else:
            tiles.append([row, 1, image])
    return torch.tensor(tiles, dtype=torch.int32).view(-1, 3)


def prefix_splits(tokens: int) -> int:
    """``splits`` for few rows over a prefix of so many tokens: at most ``MOST_PREFIX_SPLITS``, of 64 tokens or more."""
    return max(1, min(MOST_PREFIX_SPLITS, tokens // 64))


def attention_workspace(q: torch.Tensor, tiles: int, splits: int) -> torch.Tensor:
    """What :func:`prefix_attention` needs for queries of this shape, so many tiles and splits, or fewer of each."""
    rows, heads, head_dim = q.shape
    return torch.zeros(_kernels(q).attention_workspace(rows, tiles, heads, head_dim, splits), device=q.device)


def prefix_attention(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    tiles: torch.Tensor,
    *,
    k_text: torch.Tensor | None = None,
    v_text: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    text_len: torch.Tensor | None = None,
    k_new: torch.Tensor | None = None,
    v_new: torch.Tensor | None = None,
    scale: float | None = None,
    tile_rows: Literal[16, 64] = 16,
    splits: int = 1,
    workspace: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of rows that share the prefix of their image and see some text each, one softmax over both.

    Args:
        q: queries (R, H, head_dim), one row per beam, question or image token; also float32.
        k_prefix: keys of the prefixes of B images (B, H, P, head_dim); P may be 0. Dense.
        v_prefix: their values.
        tiles: int32 (T, 3), on the device: ``attention_tiles``. Rows of no tile are left out, and those of tiles whose
            image is negative.
        k_text: keys of a store of S text tokens (S, H, head_dim); v_text: its values. Dense.
        slots: int32 (R, max_text): for each row the numbers of the text tokens it sees; what no row names is not read.
        text_len: int32 (R,): how many of them.
        k_new: keys (R, H, head_dim) of each row's last text token, written to its slot in ``k_text`` first; v_new: the
            values. No row may name a slot that another row's tile writes.
        scale: factor of the scores, positive; default ``head_dim ** -0.5``.
        tile_rows: the most rows of a tile: 16 for decoding, 64 for image rows.
        splits: parts of the prefix, 1 to 32, computed by blocks of their own: for few rows on a large device.
        workspace: ``attention_workspace`` for ``splits`` above 1; may be shared by calls on one stream. None makes one.
        k_scale: float32 (B, H, P), for keys of the prefix stored as int8: what a token's integers are multiplied with.
            For a head_dim of 64. v_scale: the same of the values.
        out: (R, H, head_dim), of which only the rows of tiles are written; None makes a new one.

    Returns:
        (R, H, head_dim); zeros for a row that sees no key at all.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    kernels, head_dim = _kernels(q), q.shape[2]
    if splits > 1 and workspace is None:
        workspace = attention_workspace(q, len(tiles), splits)
    text = (k_text, v_text, slots, text_len, k_new, v_new)
    scale = max(head_dim, 1) ** -0.5 if scale is None else scale
    split = (splits, workspace, k_scale, v_scale)
    kernels.prefix_attention(q, tiles, k_prefix, v_prefix, *text, scale, tile_rows, out, *split, _stream(q))
    return out


def _kernels(x: torch.Tensor) -> ModuleType:
    if not hasattr(_C, "cuda"):
        raise RuntimeError("this build of gitfast has no CUDA kernels: it was made without nvcc")
    if not x.is_cuda:
        raise ValueError(f"expected tensors of a CUDA device, got one of {x.device}")
    module: ModuleType = _C.cuda
    return module


def _stream(x: torch.Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream
