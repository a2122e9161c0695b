"""The benchmark cases of the CPU: one function per kernel. ``KERNELS`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from gitfast import ops
from gitfast.bench import operands, peers
from gitfast.bench.case import OURS, Case, Operands, Side
from gitfast.bench.shapes import DTYPE_BYTES, Attention, Rows, attentions, layer_rows
from gitfast.checkpoints.published import SHAPES
from gitfast.engines.cpu import DTYPES
from gitfast.ops import reference

DECODE_ROWS = (1, 4, 8, 64)  # one image, its beams, many images


@dataclass(frozen=True)
class Context:
    """The surroundings of the cases; without torch there are no peers, without ``flex`` no FlexAttention."""

    pool: ops.ThreadPool
    torch: Any | None
    flex: Callable[..., Any] | None = None


def layer_norm(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for rows in _rows(models):
        moved = 4 * (2 * rows.rows + 2) * rows.width
        yield Case(
            "layer_norm",
            rows.label,
            f"{rows.rows} x {rows.width}",
            "float32",
            flops=8 * rows.rows * rows.width,
            bytes=moved,
            build=partial(_layer_norm, context, rows.rows, rows.width),
        )


def _layer_norm(context: Context, rows: int, width: int) -> Operands:
    rng, eps = np.random.default_rng(0), 1e-5
    x, gamma, beta = operands.normal(rng, rows, width), operands.normal(rng, width), operands.normal(rng, width)
    out = np.empty((rows, width), np.float32)
    sides = {OURS: Side(lambda: ops.layer_norm(x, gamma, beta, eps=eps, out=out, pool=context.pool))}
    if torch := context.torch:
        given = [torch.from_numpy(a) for a in (x, gamma, beta)]
        sides["torch"] = Side(lambda: torch.nn.functional.layer_norm(given[0], (width,), *given[1:], eps))
    return Operands(sides, rows, lambda some: reference.layer_norm(*_doubles(x[some], gamma, beta), eps=eps))


@dataclass(frozen=True)
class Layer:
    """A linear layer (K -> N) on some rows."""

    name: str
    m: int
    n: int
    k: int
    dtype: str
    activation: Literal["none", "gelu", "quick_gelu"] = "none"
    residual: bool = False


def linear(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for rows in _rows(models):
        for layer in _layers(rows):
            shape = f"{layer.name} {layer.m} x {layer.n} x {layer.k}"
            weights, rest = layer.n * layer.k, layer.m * (layer.k + layer.n * (1 + layer.residual))
            moved = DTYPE_BYTES[layer.dtype] * weights + DTYPE_BYTES["float32"] * rest
            flops, build = 2 * layer.m * layer.n * layer.k, partial(_linear, context, layer)
            yield Case("linear", rows.label, shape, layer.dtype, flops=flops, bytes=moved, build=build)


def _layers(rows: Rows) -> Iterator[Layer]:
    """Return the linear layers of a transformer block, with the vocabulary's for rows of text."""
    d, m, decode = rows.width, rows.rows, rows.stage == "decode"
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu" if rows.stage == "vision" else "gelu"
    for dtype in DTYPES:
        if decode or rows.images == 1:  # with many images the widest layer stands for all
            yield Layer("qkv", m, 3 * d, d, dtype)
            yield Layer("out", m, d, d, dtype, residual=True)
            yield Layer("fc2", m, d, rows.mlp, dtype, residual=True)
        yield Layer("fc1", m, rows.mlp, d, dtype, activation=activation)
        if decode:
            yield Layer("head", m, SHAPES[rows.model].vocab_size, d, dtype)


def _linear(context: Context, layer: Layer) -> Operands:
    rng, (m, n, k, dtype) = np.random.default_rng(0), (layer.m, layer.n, layer.k, layer.dtype)
    x, bias = operands.normal(rng, m, k, dtype=dtype), operands.normal(rng, n, dtype=dtype)
    weight, residual = (
        operands.weights(rng, n, k, dtype),
        operands.normal(rng, m, n, dtype=dtype) if layer.residual else None,
    )
    packed, out = ops.PackedWeight(weight, bias, dtype=dtype), np.empty((m, n), np.float32)

    def ours() -> np.ndarray:
        return ops.linear(x, packed, activation=layer.activation, residual=residual, out=out, pool=context.pool)

    # Where a CPU multiplies no bfloat16, int8 multiplies whole numbers: of 14 bits on ARM, of 15 on x86.
    sides = {OURS: Side(ours, {"int8": "14 bits", "w8a8": "8 bits"}.get(dtype, "float32"))}
    if torch := context.torch:
        theirs = "float32" if dtype == "float32" else "bfloat16"
        xt, wt, bt, rt = (
            None if a is None else torch.from_numpy(a).to(getattr(torch, theirs)) for a in (x, weight, bias, residual)
        )
        call = partial(peers.linear, torch, xt, wt, bt, layer.activation, rt)
        sides[f"torch {theirs}"] = Side(call, theirs)

    def rows(some: np.ndarray) -> np.ndarray:
        added = None if residual is None else residual[some]
        return reference.linear(*_doubles(x[some], weight, bias), activation=layer.activation, residual=added)

    return Operands(sides, m, rows)


def prefix_attention(context: Context, models: Sequence[str]) -> Iterator[Case]:
    """Attend to one image: a call has one prefix."""
    for shape in attentions(models, images=(1,)):
        for dtype in ("float32", "bfloat16"):
            per_token, rows = shape.heads * shape.head_dim, shape.rows
            prefix, text = (2 if dtype == "bfloat16" else 4) * shape.prefix, 4 * rows * shape.text
            yield Case(
                "prefix_attention",
                shape.label,
                shape.size,
                dtype,
                flops=4 * shape.keys * per_token,
                bytes=(2 * (prefix + text) + 2 * 4 * rows) * per_token,
                build=partial(_prefix_attention, context, shape, dtype),
            )


def _prefix_attention(context: Context, shape: Attention, dtype: str) -> Operands:
    rng, heads, d, rows = np.random.default_rng(0), shape.heads, shape.head_dim, shape.rows
    q = operands.normal(rng, rows, heads, d, dtype=dtype)
    k, v = (operands.normal(rng, heads, shape.prefix, d, dtype=dtype) for _ in range(2))
    k_text, v_text = (operands.normal(rng, shape.text * rows, heads, d, dtype=dtype) for _ in range(2))
    slots = [[t * rows + row for t in range(shape.text)] for row in range(rows)]  # step by step, as decoding writes
    prefix, out = ops.PackedPrefix(k, v, dtype), np.empty((rows, heads, d), np.float32)
    text = (k_text, v_text, slots) if shape.text else (None, None, None)

    def ours() -> np.ndarray:
        return ops.prefix_attention(
            q, prefix, k_text=text[0], v_text=text[1], slots=text[2], out=out, pool=context.pool
        )

    sides = {OURS: Side(ours, dtype)}  # with a bfloat16 prefix, queries and weights may be rounded too
    if torch := context.torch:
        kind = getattr(torch, dtype)
        tq, tk, tv, *own = (torch.from_numpy(a).to(kind) for a in (q, k[None], v[None], k_text, v_text))
        stored = tuple(t.view(shape.text, rows, heads, d) for t in own) if shape.text else None
        sides |= peers.attention(torch, shape, tq, tk, tv, stored, context.flex)

    def some_rows(some: np.ndarray) -> np.ndarray:
        queries, keys, values, own_keys, own_values = _doubles(q[some], k[None], v[None], k_text, v_text)
        named = [slots[row] for row in some]
        images = [0] * len(some)
        return reference.prefix_attention(
            queries, keys, values, images, k_text=own_keys, v_text=own_values, slots=named
        )

    return Operands(sides, rows, some_rows)


def _doubles(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def _rows(models: Sequence[str]) -> Iterator[Rows]:
    """Yield the rows of layers; many images for the first model only: others take seconds and show nothing new."""
    for rows in layer_rows(models):
        if rows.rows in DECODE_ROWS if rows.stage == "decode" else rows.images == 1 or rows.model == models[0]:
            yield rows


KERNELS = {kernel.__name__: kernel for kernel in (layer_norm, linear, prefix_attention)}
