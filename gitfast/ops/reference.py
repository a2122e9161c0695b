"""What the kernels compute, in plain torch: on any device, in any dtype; float64 gives the truth tests compare with.

Arguments and results are those of :mod:`gitfast.ops.cuda`; weights are plain (N, K) tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x * Phi(x), by erfc: 1 + erf would lose the digits of its tail, in float64 too."""
    return x / 2 * torch.erfc(-x / 2**0.5)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": gelu,
    "quick_gelu": quick_gelu,
}


def _plus(x: torch.Tensor, *terms: torch.Tensor | None) -> torch.Tensor:
    for term in terms:
        x = x if term is None else x + term
    return x


def add_layer_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``LayerNorm(x + bias + residual)`` over rows (R, D)."""
    return F.layer_norm(_plus(x, bias, residual), gamma.shape, gamma, beta, eps)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``gelu(x + bias)``: (R, D)."""
    return gelu(_plus(x, bias))


def bias_quick_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``quick_gelu(x + bias)``: (R, D)."""
    return quick_gelu(_plus(x, bias))


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
    """``LayerNorm(words[ids] + positions[position_ids])``; NaN in rows whose id lies outside its table: (R, D)."""

    def rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        exists = (index >= 0) & (index < len(table))
        return torch.where(exists[:, None], table[index.long().clamp(0, len(table) - 1)], torch.nan)

    return add_layer_norm(rows(words, ids), gamma, beta, residual=rows(positions, position_ids), eps=eps)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``activation(x @ weight.T + bias) + residual``: (R, N)."""
    return _plus(ACTIVATIONS[activation](_plus(x @ weight.T, bias)), residual)


def prefix_attention(
    q: torch.Tensor,
    k_prefix: torch.Tensor,
    v_prefix: torch.Tensor,
    images: Sequence[int],
    *,
    k_text: torch.Tensor | None = None,
    v_text: torch.Tensor | None = None,
    slots: Sequence[Sequence[int]] | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of rows (R, H, head_dim), row r over the prefix of ``images[r]`` and the text tokens ``slots[r]``."""
    scale = max(q.shape[2], 1) ** -0.5 if scale is None else scale
    out = torch.zeros_like(q)
    for row, image in enumerate(images):
        k, v = k_prefix[image], v_prefix[image]
        if slots is not None and k_text is not None and v_text is not None:
            named = torch.as_tensor(slots[row], dtype=torch.long, device=q.device)
            k = torch.cat([k, k_text[named].transpose(0, 1)], 1)
            v = torch.cat([v, v_text[named].transpose(0, 1)], 1)
        if k.shape[1]:
            weights = (torch.einsum("hd,htd->ht", q[row], k) * scale).softmax(-1)
            out[row] = torch.einsum("ht,htd->hd", weights, v)
    return out


def head_select(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    choices: int = 1,
    temperature: float = 1.0,
    quantiles: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Tokens and log-probabilities (R, choices), drawn tokens (R,) at ``quantiles`` (R,), and logits (R, V).

    Descending, of equal ones the lower token first; a token is drawn where the sum of probabilities up to and with it
    first exceeds the quantile.
    """
    logits = linear(x, weight, bias) / temperature
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :choices]
    drawn = None
    if quantiles is not None:
        shares = logits.softmax(1)
        reached = (shares.cumsum(1) > quantiles[:, None]) & (shares > 0)
        last = (shares > 0).int().cumsum(1).argmax(1)  # where rounding keeps the sum below
        drawn = torch.where(reached.any(1), reached.int().argmax(1), last)
    return order, logits.log_softmax(1).gather(1, order), drawn, logits
