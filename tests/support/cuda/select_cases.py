"""The head and the choice of tokens: inputs, the truth in float64, and the comparison. Device and emulation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gitfast.ops import reference
from gitfast.ops.cuda_weights import TiledWeight

_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def quantile(key: int, step: int) -> float:
    return (mix((key & _MASK) ^ step) >> 11) * 2.0**-53


@dataclass
class Case:
    """One call's tensors; what is written is full of NaN or of -9 before."""

    x: torch.Tensor
    weight: TiledWeight
    bias: torch.Tensor | None
    temperature: float
    tokens: torch.Tensor
    log_probs: torch.Tensor
    logits: torch.Tensor | None
    keys: torch.Tensor | None
    step: torch.Tensor | None
    drawn: torch.Tensor | None
    drawn_log_probs: torch.Tensor | None
    workspace: torch.Tensor
    overlap: bool = False

    def run(self, kernel: Callable[..., None]) -> Case:
        weight = {"weight": self.weight.data, "weight_scales": self.weight.scales}
        kernel(**(vars(self) | weight), vocab_size=self.weight.shape[0])
        return self

    def truth(self) -> torch.Tensor:
        """Logits over the temperature, float64 (R, V), on the CPU."""
        weight, bias = self.weight.unpack().cpu().double(), None if self.bias is None else self.bias.cpu().double()
        return torch.from_numpy(reference.linear(self.x.cpu().double(), weight, bias) / self.temperature)

    def error(self) -> float:
        """The largest error in units of what is allowed; infinite for a wrong token.

        Allowed are the errors of float32 sums of the logits, `slack`: a token may stand where another within that
        belongs, and be drawn within that of its share.
        """
        truth = self.truth()
        slack = 1e-5 * (1 + truth[truth.isfinite()].abs().amax().item())
        tokens = self.tokens.cpu().long()
        if not bool(((tokens >= 0) & (tokens < truth.shape[1])).all()):
            return float("inf")
        if any(len(set(row)) < len(row) for row in tokens.tolist()):
            return float("inf")
        best = truth.topk(tokens.shape[1], dim=1).values
        errors = [(best - truth.gather(1, tokens)).abs().amax().item() / slack]
        expected = truth.log_softmax(1).gather(1, tokens)
        errors.append((self.log_probs.cpu().double() - expected).abs().amax().item() / (2 * slack))
        if self.logits is not None:
            errors.append((self.logits.cpu().double() - truth).abs().amax().item() / slack)
        if self.keys is not None and self.step is not None and self.drawn is not None:
            shares = truth.softmax(1).cumsum(1)
            for row, (key, token) in enumerate(zip(self.keys.tolist(), self.drawn.tolist(), strict=True)):
                if not 0 <= token < truth.shape[1]:
                    return float("inf")
                u, upto = quantile(key, int(self.step[row])), shares[row, token].item()
                before = upto - truth[row].softmax(0)[token].item()
                errors.append(max(before - u, u - upto, 0.0) / (2 * slack))
        if self.drawn is not None and self.drawn_log_probs is not None:
            raw = (truth * self.temperature).log_softmax(1).gather(1, self.drawn.cpu().long()[:, None])[:, 0]
            errors.append((self.drawn_log_probs.cpu().double() - raw).abs().amax().item() / (2 * slack))
        return float("inf") if any(e != e for e in errors) else max(errors)


def make_case(
    rows: int,
    vocab: int,
    depth: int,
    dtype: torch.dtype,
    workspace: Callable[[int, int, int], int],
    *,
    choices: int = 1,
    weights: str = "same",
    bias: bool = True,
    temperature: float = 1.0,
    logits: bool = False,
    draw: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """``workspace``: the kernels' select_workspace."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    keys = torch.randint(-(2**62), 2**62, (rows,), generator=generator).to(device)
    return Case(
        x=random(rows, depth),
        weight=TiledWeight.pack(random(vocab, depth) * depth**-0.5, None if weights == "same" else weights),
        bias=random(vocab) if bias else None,
        temperature=temperature,
        tokens=torch.full((rows, choices), -9, dtype=torch.int32, device=device),
        log_probs=torch.full((rows, choices), torch.nan, device=device),
        logits=torch.full((rows, vocab), torch.nan, device=device) if logits else None,
        keys=keys if draw else None,
        step=(torch.arange(rows, dtype=torch.int32, device=device) * 7 + seed) % 50 if draw else None,
        drawn=torch.full((rows,), -9, dtype=torch.int32, device=device) if draw else None,
        drawn_log_probs=torch.full((rows,), torch.nan, device=device) if draw else None,
        workspace=torch.full((workspace(rows, vocab, choices),), 0xFF, dtype=torch.uint8, device=device),
    )
