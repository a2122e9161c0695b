"""The same work in torch, on tensors of any device. torch is optional: without it ``import_torch`` returns None."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gitfast.bench.case import Side
from gitfast.bench.shapes import Attention

# torch is passed around as a value, so that nothing here imports it.
Torch = Any
Tensor = Any


def import_torch() -> Torch | None:
    try:
        import torch
    except ImportError:
        return None
    return torch


def compile_problem(torch: Torch, device: str) -> str | None:
    """Return the reason that torch.compile does not run here, or None."""
    try:
        torch.compile(lambda x: (x + 1).sum())(torch.ones(8, device=device))
    except Exception as error:  # whatever its compiler throws: the other peers are measured all the same
        lines = str(error).splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    torch._dynamo.config.recompile_limit = 256  # one function meets many shapes
    return None


def step_by_step(dtype: str) -> str:
    """Return the ``rounds_to`` of a side whose every step is a tensor of ``dtype``."""
    return dtype if dtype == "float32" else f"{dtype} steps"


def activate(torch: Torch, name: str, x: Tensor) -> Tensor:
    if name == "gelu":
        return torch.nn.functional.gelu(x)
    return x * torch.sigmoid(1.702 * x) if name == "quick_gelu" else x


def linear(torch: Torch, x: Tensor, weight: Tensor, bias: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    y = activate(torch, activation, torch.nn.functional.linear(x, weight, bias))
    return y if residual is None else y + residual


def attention(
    torch: Torch,
    shape: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    text: tuple[Tensor, Tensor] | None,
    flex: Callable[..., Tensor] | None,
) -> dict[str, Side]:
    """Return the peers of attention over shared prefixes. Copying keys and values, where a peer needs it, is not timed.

    q (B * R, H, head_dim), k and v (B, H, P, head_dim), text (T, B * R, H, head_dim) twice; ``flex`` is FlexAttention,
    compiled.
    """
    sdpa, dtype = torch.nn.functional.scaled_dot_product_attention, str(k.dtype).removeprefix("torch.")
    images, rows, total = shape.images, shape.rows, shape.images * shape.rows
    size = (images, rows, shape.heads, shape.head_dim)
    together = q.view(size).transpose(1, 2).contiguous()  # (B, H, R, head_dim)

    def side(call: Callable[..., Tensor], *arguments: Any, rounds_to: str = dtype, **options: Any) -> Side:
        def arrange(y: Tensor) -> Tensor:  # (sequences, H, rows, head_dim)
            return y.transpose(1, 2).reshape(total, shape.heads, shape.head_dim)

        return Side(partial(call, *arguments, **options), rounds_to, arrange)

    def matmul_side(*arguments: Any) -> Side:
        return side(_matmul_softmax, *arguments, rounds_to=step_by_step(dtype))

    if text is None:
        sides = {"sdpa": side(sdpa, together, k, v), "matmul": matmul_side(together, k, v)}
        return sides | ({"flex": side(flex, together, k, v)} if flex else {})

    own = [t.permute(1, 2, 0, 3) for t in text]  # (B * R, H, T, head_dim)
    alone = q[:, :, None]
    copied = [torch.cat([x.repeat_interleave(rows, 0), t], 2) for x, t in zip((k, v), own, strict=True)]
    sides = {"sdpa, copied": side(sdpa, alone, *copied), "matmul, copied": matmul_side(alone, *copied)}
    if rows == 1:
        return sides | ({"flex": side(flex, alone, *copied)} if flex else {})

    # The texts of an image's rows behind its prefix, and a mask that gives each row its own.
    texts = [t.unflatten(0, (images, rows)).transpose(1, 2).flatten(2, 3) for t in own]
    shared = [torch.cat([x, t], 2) for x, t in zip((k, v), texts, strict=True)]  # (B, H, P + R * T, head_dim)
    mask = torch.full((rows, shared[0].shape[2]), -torch.inf, dtype=k.dtype, device=k.device)
    mask[:, : shape.prefix] = 0
    for row in range(rows):
        mask[row, shape.prefix + row * shape.text :][: shape.text] = 0
    sides["sdpa, grouped"] = side(sdpa, together, *shared, attn_mask=mask)
    if images == 1:
        view = [x.expand(rows, -1, -1, -1) for x in shared]
        sides["sdpa, expanded"] = side(sdpa, alone, *view, attn_mask=mask[:, None, None])
    if flex:
        sides["flex"] = side(flex, together, *shared, score_mod=lambda score, b, h, i, j: score + mask[i, j])
    return sides


def _matmul_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v


def compiled_flex(torch: Torch) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled
