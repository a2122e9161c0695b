"""The benchmark cases of a GPU: one function per kernel. ``KERNELS`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from gitfast import _C
from gitfast.bench import peers
from gitfast.bench.case import OURS, Case, Operands, Side
from gitfast.bench.shapes import DTYPE_BYTES, Attention, attentions, layer_rows
from gitfast.checkpoints.published import SHAPES
from gitfast.ops import reference

MOST_ROWS_OF_TEXT = 64  # for a layer whose kernel is made for few
STORED: tuple[Literal["bfloat16", "int8", "float8"], ...] = ("bfloat16", "int8", "float8")

Tensor = Any  # torch's: nothing here imports torch


@dataclass(frozen=True)
class Context:
    """The surroundings of the cases. ``kernels`` is ``_C.cuda``; sides need ``compile`` (torch.compile) or ``flex``."""

    kernels: Any
    torch: Any
    generator: Any
    device: str = "cuda"
    compile: Callable[..., Any] | None = None
    flex: Callable[..., Any] | None = None

    def normal(self, *shape: int, dtype: str) -> Tensor:
        return self.torch.randn(shape, device=self.device, generator=self.generator).to(getattr(self.torch, dtype))

    def stream(self) -> int:
        """Return the current stream, at every call anew: a graph is captured on a stream of its own."""
        return self.torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0

    def sides(self, ours: Callable[[], Any], plain: Callable[..., Any], given: Sequence[Tensor]) -> dict[str, Side]:
        """Return our side, torch's operators, and the same compiled by torch.compile."""
        dtype = str(given[-1].dtype).removeprefix("torch.")
        sides = {OURS: Side(ours, dtype), "torch": Side(partial(plain, *given), peers.step_by_step(dtype))}
        if self.compile:
            sides["torch.compile"] = Side(partial(self.compile(plain), *given), dtype)
        return sides


def _doubles(x: Tensor) -> np.ndarray:
    doubles: np.ndarray = x.double().cpu().numpy()
    return doubles


def add_layer_norm(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for rows in layer_rows(models):
        for dtype in ("bfloat16", "float32"):
            yield Case(
                "add_layer_norm",
                rows.label,
                f"{rows.rows} x {rows.width}",
                dtype,
                flops=10 * rows.rows * rows.width,
                bytes=DTYPE_BYTES[dtype] * (3 * rows.rows + 3) * rows.width,  # x and residual read, out written
                build=partial(_add_layer_norm, context, rows.rows, rows.width, dtype),
            )


def _add_layer_norm(context: Context, rows: int, width: int, dtype: str) -> Operands:
    torch, eps = context.torch, 1e-5
    x, residual, out = (context.normal(rows, width, dtype=dtype) for _ in range(3))
    bias, gamma, beta = (context.normal(width, dtype=dtype) for _ in range(3))

    def ours() -> Tensor:
        norm = {"gamma": gamma, "beta": beta, "eps": eps}
        context.kernels.add_layer_norm(x=x, bias=bias, residual=residual, **norm, out=out, stream=context.stream())
        return out

    def plain(x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x + bias + residual, (width,), gamma, beta, eps)

    def some_rows(some: np.ndarray) -> np.ndarray:
        added = _doubles(x[some]) + _doubles(bias) + _doubles(residual[some])
        return reference.layer_norm(added, _doubles(gamma), _doubles(beta), eps=eps)

    return Operands(context.sides(ours, plain, (x, bias, residual, gamma, beta)), rows, some_rows)


def bias_gelu(context: Context, models: Sequence[str]) -> Iterator[Case]:
    return _activation(context, models, "gelu")


def bias_quick_gelu(context: Context, models: Sequence[str]) -> Iterator[Case]:
    return _activation(context, models, "quick_gelu")


def _activation(context: Context, models: Sequence[str], name: str) -> Iterator[Case]:
    for rows in layer_rows(models, ("vision",) if name == "quick_gelu" else ("prefix", "decode")):
        yield Case(
            f"bias_{name}",
            rows.label,
            f"{rows.rows} x {rows.mlp}",
            "bfloat16",
            flops=10 * rows.rows * rows.mlp,
            bytes=DTYPE_BYTES["bfloat16"] * (2 * rows.rows + 1) * rows.mlp,
            build=partial(_bias_activation, context, rows.rows, rows.mlp, name),
        )


def _bias_activation(context: Context, rows: int, width: int, name: str) -> Operands:
    x, out = (context.normal(rows, width, dtype="bfloat16") for _ in range(2))
    bias, kernel = context.normal(width, dtype="bfloat16"), context.kernels.bias_activation

    def ours() -> Tensor:
        kernel(x=x, bias=bias, activation=name, out=out, stream=context.stream())
        return out

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return peers.activate(context.torch, name, x + bias)

    return Operands(
        context.sides(ours, plain, (x, bias)),
        rows,
        lambda some: reference.ACTIVATIONS[name](_doubles(x[some]) + _doubles(bias)),
    )


def embed_layer_norm(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for rows in layer_rows(models, ("decode",)):
        yield Case(
            "embed_layer_norm",
            rows.label,
            f"{rows.rows} x {rows.width}",
            "bfloat16",
            flops=9 * rows.rows * rows.width,
            bytes=DTYPE_BYTES["bfloat16"] * (3 * rows.rows + 2) * rows.width,
            build=partial(_embed_layer_norm, context, rows.rows, rows.model),
        )


def _embed_layer_norm(context: Context, rows: int, model: str) -> Operands:
    torch, config = context.torch, SHAPES[model]
    width, eps = config.hidden_size, config.layer_norm_eps
    words, positions = (
        context.normal(count, width, dtype="bfloat16") for count in (config.vocab_size, config.max_position_embeddings)
    )
    ids, places = (
        torch.randint(len(table), (rows,), dtype=torch.int32, device=context.device, generator=context.generator)
        for table in (words, positions)
    )
    gamma, beta = (context.normal(width, dtype="bfloat16") for _ in range(2))
    out = torch.empty(rows, width, dtype=torch.bfloat16, device=context.device)

    def ours() -> Tensor:
        rows = {"ids": ids, "position_ids": places, "words": words, "positions": positions}
        norm = {"gamma": gamma, "beta": beta, "eps": eps}
        context.kernels.embed_layer_norm(**rows, **norm, out=out, stream=context.stream())
        return out

    def plain(ids: Tensor, places: Tensor, words: Tensor, positions: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        embed = torch.nn.functional.embedding
        return torch.nn.functional.layer_norm(embed(ids, words) + embed(places, positions), (width,), gamma, beta, eps)

    def some_rows(some: np.ndarray) -> np.ndarray:
        added = _doubles(words[ids[some].long()]) + _doubles(positions[places[some].long()])
        return reference.layer_norm(added, _doubles(gamma), _doubles(beta), eps=eps)

    return Operands(context.sides(ours, plain, (ids, places, words, positions, gamma, beta)), rows, some_rows)


def prefix_attention(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for shape in attentions(models):
        per_token = shape.heads * shape.head_dim
        yield Case(
            "prefix_attention",
            shape.label,
            shape.size,
            "bfloat16",
            flops=4 * shape.keys * per_token,
            bytes=DTYPE_BYTES["bfloat16"] * 2 * (shape.tokens + shape.images * shape.rows) * per_token,
            build=partial(_prefix_attention, context, shape),
        )


def _prefix_attention(context: Context, shape: Attention) -> Operands:
    from gitfast.ops.cuda import attention_tiles, prefix_splits

    torch, total, size = context.torch, shape.images * shape.rows, (shape.heads, shape.head_dim)
    q, out = (context.normal(total, *size, dtype="bfloat16") for _ in range(2))
    k, v = (context.normal(shape.images, size[0], shape.prefix, size[1], dtype="bfloat16") for _ in range(2))
    stored = tuple(context.normal(shape.text, total, *size, dtype="bfloat16") for _ in range(2)) if shape.text else None
    tile_rows: Literal[16, 64] = 64 if shape.rows > 16 else 16
    text: dict[str, Tensor] = {}
    int32 = {"dtype": torch.int32, "device": context.device}
    if stored:  # step by step, as decoding writes
        text = {name: t.flatten(0, 1) for name, t in zip(("k_text", "v_text"), stored, strict=True)}
        text["kv_index"] = torch.arange(shape.text * total, **int32).view(shape.text, total).t().contiguous()
        text["text_len"] = torch.full((total,), shape.text, **int32)
    images = [image for image in range(shape.images) for _ in range(shape.rows)]
    tiles, scale = attention_tiles(images, tile_rows).to(context.device), shape.head_dim**-0.5

    # Few tiles leave most of a GPU idle: there the prefix is shared by blocks as the engine shares it, by its length.
    splits = 1 if shape.images * shape.rows > 16 else prefix_splits(shape.prefix)
    floats = context.kernels.attention_workspace(total, *size, splits)
    workspace = torch.zeros(floats, device=context.device) if floats else None

    def ours() -> Tensor:
        work = {"tile_rows": tile_rows, "splits": splits, "workspace": workspace, "scale": scale}
        prefix = {"k_prefix": k, "v_prefix": v, "tiles": tiles}
        context.kernels.prefix_attention(q=q, **prefix, **text, **work, out=out, stream=context.stream())
        return out

    @lru_cache(maxsize=1)  # rows come in order
    def of_image(image: int) -> list[np.ndarray]:
        return [_doubles(x[image]) for x in (k, v)]

    def row_of_truth(row: int) -> np.ndarray:
        keys_values = of_image(row // shape.rows)
        if stored:
            own = [_doubles(t[:, row]).transpose(1, 0, 2) for t in stored]
            keys_values = [np.concatenate(pair, 1) for pair in zip(keys_values, own, strict=True)]
        return reference.attention(_doubles(q[row]), *keys_values)

    sides = {OURS: Side(ours, "bfloat16")} | peers.attention(torch, shape, q, k, v, stored, context.flex)
    return Operands(sides, total, lambda some: np.stack([row_of_truth(int(row)) for row in some]))


@dataclass(frozen=True)
class Layer:
    """A linear layer (K -> N) on R rows of text; ``stored`` is the weight's dtype."""

    name: str
    rows: int
    n: int
    k: int
    stored: Literal["bfloat16", "int8", "float8"]
    activation: Literal["none", "gelu"] = "none"
    residual: bool = False

    @property
    def shape(self) -> str:
        return f"{self.name} {self.rows} x {self.n} x {self.k}"

    @property
    def bytes(self) -> int:
        weight = self.n * self.k * DTYPE_BYTES[self.stored]
        return weight + 2 * self.rows * (self.k + self.n * (1 + self.residual))


def linear(context: Context, models: Sequence[str]) -> Iterator[Case]:
    for rows in layer_rows(models, ("decode",)):
        if rows.rows > MOST_ROWS_OF_TEXT:
            continue
        d, mlp = rows.width, rows.mlp
        for stored in STORED:
            for layer in (
                Layer("qkv", rows.rows, 3 * d, d, stored),
                Layer("out", rows.rows, d, d, stored, residual=True),
                Layer("fc1", rows.rows, mlp, d, stored, activation="gelu"),
                Layer("fc2", rows.rows, d, mlp, stored, residual=True),
            ):
                flops, build = 2 * layer.rows * layer.n * layer.k, partial(_linear, context, layer)
                yield Case("linear", rows.label, layer.shape, stored, flops=flops, bytes=layer.bytes, build=build)


def _weight(context: Context, n: int, k: int, stored: str) -> tuple[Any, Tensor]:
    """Make a packed weight, and the bfloat16 weight it stands for, which peers multiply by."""
    from gitfast.ops.cuda_weights import TiledWeight

    weight = context.normal(n, k, dtype="bfloat16")
    packed = TiledWeight.pack(weight, None if stored == "bfloat16" else stored)  # type: ignore[arg-type]
    return packed, packed.unpack().to(context.torch.bfloat16)


def _linear(context: Context, layer: Layer) -> Operands:
    packed, plain_weight = _weight(context, layer.n, layer.k, layer.stored)
    x, bias = context.normal(layer.rows, layer.k, dtype="bfloat16"), context.normal(layer.n, dtype="bfloat16")
    residual = context.normal(layer.rows, layer.n, dtype="bfloat16") if layer.residual else None
    out = context.torch.empty(layer.rows, layer.n, dtype=x.dtype, device=context.device)

    def ours(overlap: bool = True) -> Tensor:
        weight = {"weight": packed.data, "weight_scales": packed.scales, "bias": bias}
        rest = {"activation": layer.activation, "residual": residual, "overlap": overlap}
        context.kernels.linear(x=x, **weight, **rest, out=out, stream=context.stream())
        return out

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return peers.linear(context.torch, x, weight, bias, layer.activation, residual)

    def some_rows(some: np.ndarray) -> np.ndarray:
        added = None if residual is None else _doubles(residual[some])
        given = (_doubles(x[some]), _doubles(packed.unpack()), _doubles(bias))
        return reference.linear(*given, activation=layer.activation, residual=added)

    alone = {"without overlap": Side(partial(ours, overlap=False), "bfloat16")}
    return Operands(context.sides(ours, plain, (x, plain_weight, bias)) | alone, layer.rows, some_rows)


def norm_linear(context: Context, models: Sequence[str]) -> Iterator[Case]:
    """A layer whose few rows are normalised by the same kernel, beside a kernel for each."""
    for rows in layer_rows(models, ("decode",)):
        if rows.rows > _C.cuda_limits.NORM_LINEAR_ROWS or rows.width > _C.cuda_limits.NORM_LINEAR_WIDTH:
            continue
        for stored in STORED:
            for layer in (
                Layer("qkv", rows.rows, 3 * rows.width, rows.width, stored),
                Layer("fc1", rows.rows, rows.mlp, rows.width, stored, activation="gelu"),
            ):
                flops, build = 2 * layer.rows * layer.n * layer.k, partial(_norm_linear, context, layer)
                moved = layer.bytes + 2 * (layer.rows + 2) * layer.k  # the normalised rows, gamma and beta
                yield Case("norm_linear", rows.label, layer.shape, stored, flops=flops, bytes=moved, build=build)


def _norm_linear(context: Context, layer: Layer) -> Operands:
    torch, eps = context.torch, 1e-5
    packed, plain_weight = _weight(context, layer.n, layer.k, layer.stored)
    x, bias = context.normal(layer.rows, layer.k, dtype="bfloat16"), context.normal(layer.n, dtype="bfloat16")
    gamma, beta = (context.normal(layer.k, dtype="bfloat16") for _ in range(2))
    normalised, out = torch.empty_like(x), torch.empty(layer.rows, layer.n, dtype=x.dtype, device=context.device)
    norm, weight = {"gamma": gamma, "beta": beta, "eps": eps}, {"weight": packed.data, "weight_scales": packed.scales}
    product = {**weight, "bias": bias, "activation": layer.activation, "out": out}

    def ours(overlap: bool = True) -> Tensor:
        rows = {"x": x, "normalised": normalised, "overlap": overlap}
        context.kernels.norm_linear(**rows, **norm, **product, stream=context.stream())
        return out

    def two_kernels() -> Tensor:
        stream = context.stream()
        context.kernels.add_layer_norm(
            x=x, bias=None, residual=None, **norm, out=normalised, overlap=True, stream=stream
        )
        context.kernels.linear(x=normalised, residual=None, **product, overlap=True, stream=stream)
        return out

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normalised = torch.nn.functional.layer_norm(x, (layer.k,), gamma, beta, eps)
        return peers.linear(torch, normalised, weight, bias, layer.activation, None)

    def some_rows(some: np.ndarray) -> np.ndarray:
        given = map(_doubles, (x[some], gamma, beta, packed.unpack(), bias))
        return reference.norm_linear(*given, eps=eps, activation=layer.activation)[1]

    dtype = peers.step_by_step("bfloat16")  # normalised rows are rounded
    more = {"without overlap": Side(partial(ours, overlap=False), dtype), "two kernels": Side(two_kernels, dtype)}
    sides = context.sides(ours, plain, (x, plain_weight, bias)) | {OURS: Side(ours, dtype)} | more
    return Operands(sides, layer.rows, some_rows)


def head_select(context: Context, models: Sequence[str]) -> Iterator[Case]:
    """Select the likeliest tokens with their log-probabilities: one for greedy search, 2 K for K beams."""
    for rows in layer_rows(models, ("decode",)):
        vocab, beams = SHAPES[rows.model].vocab_size, rows.rows // rows.images
        if rows.rows > MOST_ROWS_OF_TEXT:
            continue
        for stored in STORED:
            layer = Layer("head", rows.rows, vocab, rows.width, stored)
            choices = 1 if beams == 1 else 2 * beams
            shape = f"{rows.rows} x {vocab}, {choices} of each"
            flops, build = 2 * rows.rows * vocab * rows.width, partial(_head_select, context, layer, choices)
            moved = layer.bytes - 2 * rows.rows * vocab  # logits are not written
            yield Case("head_select", rows.label, shape, stored, flops=flops, bytes=moved, build=build)


def _head_select(context: Context, layer: Layer, choices: int) -> Operands:
    torch, rows, vocab = context.torch, layer.rows, layer.n
    packed, plain_weight = _weight(context, vocab, layer.k, layer.stored)
    x, bias = context.normal(rows, layer.k, dtype="bfloat16"), context.normal(vocab, dtype="bfloat16")
    tokens = torch.empty(rows, choices, dtype=torch.int32, device=context.device)
    log_probs = torch.empty(rows, choices, device=context.device)
    workspace = torch.empty(
        context.kernels.select_workspace(rows, vocab, choices), dtype=torch.uint8, device=context.device
    )

    def ours(overlap: bool = True) -> Tensor:
        head = {"weight": packed.data, "weight_scales": packed.scales, "vocab_size": vocab, "bias": bias}
        chosen = {"tokens": tokens, "log_probs": log_probs, "workspace": workspace, "overlap": overlap}
        context.kernels.head_select(x=x, **head, **chosen, stream=context.stream())
        return log_probs

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias).float().log_softmax(-1).topk(choices).values

    def some_rows(some: np.ndarray) -> np.ndarray:
        given = (_doubles(x[some]), _doubles(packed.unpack()), _doubles(bias))
        return reference.head_select(*given, choices=choices)[1]

    alone = {"without overlap": Side(partial(ours, overlap=False), "bfloat16")}
    return Operands(context.sides(ours, plain, (x, plain_weight, bias)) | alone, rows, some_rows)


KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        add_layer_norm, bias_gelu, bias_quick_gelu, embed_layer_norm, linear, norm_linear, head_select,
        prefix_attention,
    )
}  # fmt: skip
