"""Run the CUDA kernels on torch tensors of one device, on torch's current stream.

:mod:`gitfast.ops.reference` has the same functions in plain numpy, as the definition of what they compute. Tensors are
float16 or bfloat16 where not said otherwise; rows may be strided and start at multiples of 16 bytes. Results are new
tensors. A row's result does not depend, to the bit, on the rows around it.

``overlap`` lets a kernel start while the one before it on the stream still runs (programmatic dependent launch, compute
capability 9.0 and later): it loads its weights meanwhile, and waits before it reads what that kernel writes.

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
from gitfast.ops.cuda_weights import TiledWeight

__all__ = [
    "DECODE_SPLITS",
    "HEAD_DIMS",
    "SearchSize",
    "SearchState",
    "Selection",
    "TiledWeight",
    "add_layer_norm",
    "advance_search",
    "attention_tiles",
    "attention_workspace",
    "bias_gelu",
    "bias_quick_gelu",
    "embed_layer_norm",
    "head_select",
    "linear",
    "norm_linear",
    "prefix_attention",
    "prefix_splits",
    "start_search",
]

DECODE_SPLITS = 4  # parts of a prefix at most, in steps of few rows
HEAD_DIMS: tuple[int, ...] = _C.cuda_limits.HEAD_DIMS  # taken by :func:`prefix_attention`


class Selection(NamedTuple):
    """The results of :func:`head_select`."""

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
    overlap: bool = False,
) -> torch.Tensor:
    """Compute ``LayerNorm(x + bias + residual)`` over rows: x, residual (R, D); bias, gamma, beta (D,) -> (R, D).

    Also for float32. Mean and variance are taken in float32, in two passes.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    terms = {"x": x, "bias": bias, "residual": residual, "gamma": gamma, "beta": beta}
    _kernels(x).add_layer_norm(**terms, eps=eps, out=out, overlap=overlap, stream=_stream(x))
    return out


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``gelu(x + bias)``, the exact one with erf: x (R, D), bias (D,) -> (R, D). Also for float32."""
    return _bias_activation(x, bias, "gelu")


def bias_quick_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``y * sigmoid(1.702 y)`` of ``y = x + bias``: x (R, D), bias (D,) -> (R, D). Also for float32."""
    return _bias_activation(x, bias, "quick_gelu")


def _bias_activation(x: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _kernels(x).bias_activation(x=x, bias=bias, activation=activation, out=out, stream=_stream(x))
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
    overlap: bool = False,
) -> torch.Tensor:
    """Compute ``LayerNorm(words[ids] + positions[position_ids])``: int32 ids (R,), tables (V, D), (P, D) -> (R, D).

    Also for float32. A row whose id lies outside its table is NaN.
    """
    out = words.new_empty((len(ids), words.shape[1]))
    rows, tables = {"ids": ids, "position_ids": position_ids}, {"words": words, "positions": positions}
    norm = {"gamma": gamma, "beta": beta, "eps": eps}
    _kernels(words).embed_layer_norm(**rows, **tables, **norm, out=out, overlap=overlap, stream=_stream(words))
    return out


def linear(
    x: torch.Tensor,
    weight: TiledWeight,
    bias: torch.Tensor | None = None,
    *,
    activation: Literal["none", "quick_gelu", "gelu"] = "none",
    residual: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Compute ``activation(x @ weight.T + bias) + residual`` for few rows: x (R, K), bias (N,), residual (R, N).

    Returns (R, N). Made for up to 16 rows, which read the weight once; every 16 more read it again. Sums are float32.
    """
    out = x.new_empty((x.shape[0], weight.shape[0]))
    affine = {"weight": weight.data, "weight_scales": weight.scales, "bias": bias}
    rest = {"activation": activation, "residual": residual, "overlap": overlap}
    _kernels(x).linear(x=x, **affine, **rest, out=out, stream=_stream(x))
    return out


def norm_linear(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    weight: TiledWeight,
    bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: Literal["none", "quick_gelu", "gelu"] = "none",
    overlap: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``y = LayerNorm(x)`` and ``activation(y @ weight.T + bias)`` for few rows: x (R, K), bias (N,).

    Returns y (R, K), and the product (R, N). By one kernel for up to ``_C.cuda_limits.NORM_LINEAR_ROWS`` rows of up to
    ``NORM_LINEAR_WIDTH`` elements, in which every block normalises all of them; by two where that would take longer.
    The results are the same to the bit.
    """
    if len(x) > _C.cuda_limits.NORM_LINEAR_ROWS or x.shape[1] > _C.cuda_limits.NORM_LINEAR_WIDTH:
        y = add_layer_norm(x, gamma, beta, eps=eps, overlap=overlap)
        return y, linear(y, weight, bias, activation=activation, overlap=overlap)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    out = x.new_empty((x.shape[0], weight.shape[0]))
    norm = {"gamma": gamma, "beta": beta, "eps": eps, "normalised": y}
    affine = {"weight": weight.data, "weight_scales": weight.scales, "bias": bias}
    rest = {"activation": activation, "overlap": overlap}
    _kernels(x).norm_linear(x=x, **norm, **affine, **rest, out=out, stream=_stream(x))
    return y, out


def head_select(
    x: torch.Tensor,
    weight: TiledWeight,
    bias: torch.Tensor | None = None,
    *,
    choices: int = 1,
    temperature: float = 1.0,
    keys: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    logits: bool = False,
    overlap: bool = False,
) -> Selection:
    """Choose the likeliest tokens of each row by ``(x @ weight.T + bias) / temperature``, with no logits in memory.

    Args:
        x: the last hidden states (R, K).
        weight: the head, (V, K).
        bias: (V,).
        choices: how many tokens per row, 1 to ``_C.cuda_limits.MAX_CHOICES``.
        temperature: what logits are divided by, positive.
        keys: int64 (R,): also draw one token per row by chance, which depends on its key and ``step`` alone.
        step: int32 (R,), with ``keys``: the number of each row's draw; on the device, so that one captured graph
            serves all steps.
        logits: also return the logits.
        overlap: see the module.

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
    head = {"weight": weight.data, "weight_scales": weight.scales, "bias": bias, "vocab_size": vocab}
    draws = {"keys": keys, "step": step, "drawn": drawn, "drawn_log_probs": drawn_log_probs}
    chosen = {"tokens": tokens, "log_probs": log_probs, "logits": all_logits, "temperature": temperature}
    kernels.head_select(x=x, **head, **chosen, **draws, workspace=workspace, overlap=overlap, stream=_stream(x))
    return Selection(tokens, log_probs, drawn, all_logits, drawn_log_probs)


def start_search(state: SearchState) -> None:
    """Begin the first sequences in all slots, as the host's arrays say, before their first step."""
    _kernels(state.ids).start_search(state=state.arguments(), stream=_stream(state.ids))


def advance_search(state: SearchState, chosen: Selection, *, overlap: bool = False) -> None:
    """Advance every slot by one step: its rows go on with what was chosen for them, or its sequence ends.

    It decides as csrc/search does.

    Args:
        state: is changed; its rows are then those of the next step.
        chosen: for each row one token in greedy search, 2 K with K beams; for samples a drawn one, or as many as may
            be drawn from, and one more for a tie. In the first step the choices of a slot's prompt, for all its rows.
        overlap: see the module.
    """
    choices = {"tokens": chosen.tokens, "log_probs": chosen.log_probs}
    draws = {"drawn": chosen.drawn, "drawn_log_probs": chosen.drawn_log_probs}
    kernels, stream = _kernels(state.ids), _stream(state.ids)
    kernels.advance_search(state=state.arguments(), **choices, **draws, overlap=overlap, stream=stream)


def attention_tiles(images: Sequence[int], tile_rows: Literal[16, 64] = 16) -> torch.Tensor:
    """List the rows that :func:`prefix_attention` computes together: int32 (T, 3) of first row, number, image.

    ``images``: the image of every row. Neighbours of one image share a tile, ``tile_rows`` of them at most.
    """
    tiles: list[list[int]] = []
    for row, image in enumerate(images):
        if tiles and tiles[-1][2] == image and tiles[-1][1] < tile_rows:
            tiles[-1][1] += 1
        else:
            tiles.append([row, 1, image])
    return torch.tensor(tiles, dtype=torch.int32).view(-1, 3)


def prefix_splits(tokens: int, tiles: int = 1, heads: int = 1) -> int:
    """Return the ``splits`` for few rows over a prefix of so many tokens: up to ``DECODE_SPLITS``, of 64 or more each.

    Returns 1 where ``tiles`` x ``heads`` are more than a split prefix may have, and fill the device anyway.
    """
    if tiles * heads > _C.cuda_limits.MAX_SPLIT_TILES:
        return 1
    return max(1, min(DECODE_SPLITS, tokens // 64))


def attention_workspace(q: torch.Tensor, splits: int) -> torch.Tensor:
    """Make what :func:`prefix_attention` needs for queries of this shape and so many splits, or fewer of each."""
    rows, heads, head_dim = q.shape
    return torch.zeros(_kernels(q).attention_workspace(rows, heads, head_dim, splits), device=q.device)


def prefix_attention(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    tiles: torch.Tensor,
    *,
    k_text: torch.Tensor | None = None,
    v_text: torch.Tensor | None = None,
    kv_index: torch.Tensor | None = None,
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
    overlap: bool = False,
) -> torch.Tensor:
    """Attend from rows to the prefix of their image and to some text each, one softmax over both.

    Args:
        q: queries (R, H, head_dim), one row per beam, question or image token; also float32.
        k_prefix: keys of the prefixes of B images (B, H, P, head_dim); P may be 0. Dense.
        v_prefix: their values.
        tiles: int32 (T, 3), on the device: ``attention_tiles``. Rows of no tile are left out, and those of tiles whose
            image is negative.
        k_text: keys of a store of S text tokens (S, H, head_dim); v_text: its values. Dense.
        kv_index: int32 (R, max_text): for each row the entries of the text tokens it sees; others are not read.
        text_len: int32 (R,): how many of them.
        k_new: keys (R, H, head_dim) of each row's last text token, written to its entry in ``k_text`` first; v_new: the
            values. No row may name an entry that another row's tile writes.
        scale: factor of the scores, positive; default ``head_dim ** -0.5``.
        tile_rows: the most rows of a tile: 16 for decoding, 64 for image rows.
        splits: parts of the prefix, 1 to ``_C.cuda_limits.MAX_SPLITS``, computed by blocks of their own, for few rows
            on a large device.
        workspace: ``attention_workspace`` for ``splits`` above 1; may be shared by calls on one stream. None makes one.
        k_scale: float32 (B, H, P), for keys of the prefix stored as int8: the factors of a token's integers.
            For a head_dim of 64. v_scale: the same of the values.
        out: (R, H, head_dim), of which only the rows of tiles are written; None makes a new one.
        overlap: see the module.

    Returns:
        (R, H, head_dim); zeros for a row that sees no key at all.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    if splits > 1 and workspace is None:
        workspace = attention_workspace(q, splits)
    prefix = {"k_prefix": k_prefix, "v_prefix": v_prefix, "k_scale": k_scale, "v_scale": v_scale, "tiles": tiles}
    text = {"k_text": k_text, "v_text": v_text, "kv_index": kv_index, "text_len": text_len}
    work = {"tile_rows": tile_rows, "splits": splits, "workspace": workspace, "overlap": overlap}
    scale = max(q.shape[2], 1) ** -0.5 if scale is None else scale
    new = {"k_new": k_new, "v_new": v_new}
    _kernels(q).prefix_attention(q=q, **prefix, **text, **new, **work, scale=scale, out=out, stream=_stream(q))
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
