"""Attention over a shared prefix and own text: inputs, the truth in float64, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch

from gitfast import _C
from gitfast.ops import reference
from gitfast.ops.cuda import attention_tiles

COUNTERS = _C.cuda_limits.MAX_SPLIT_TILES  # at the beginning of a workspace
# Half the distance of neighbouring numbers, relative to them.
# In float32 sums and scores are rounded as well: more.
ROUNDING = {torch.float32: 2.0**-21, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass
class Case:
    """One call's tensors. Rows [first, first + count) of a tile are those of one image; ``out`` is full of NaN."""

    q: torch.Tensor
    tiles: torch.Tensor
    k_prefix: torch.Tensor
    v_prefix: torch.Tensor
    out: torch.Tensor
    images: list[int]  # of every row
    tile_rows: int
    scale: float
    k_text: torch.Tensor | None = None
    v_text: torch.Tensor | None = None
    kv_index: torch.Tensor | None = None
    text_len: torch.Tensor | None = None
    k_new: torch.Tensor | None = None
    v_new: torch.Tensor | None = None
    before: dict[str, torch.Tensor] = field(default_factory=dict)  # text as it was
    splits: int = 1
    workspace: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def split(self, module: ModuleType, splits: int) -> Case:
        """The same with the prefix in ``splits`` parts; of the workspace only the counters are not NaN."""
        rows, heads, head_dim = self.q.shape
        floats = module.attention_workspace(rows, heads, head_dim, splits)
        self.splits, self.workspace = splits, torch.full((floats,), torch.nan, device=self.q.device)
        self.workspace[:COUNTERS] = 0
        return self

    def run(self, kernel: Callable[..., None]) -> torch.Tensor:
        given = {name: value for name, value in vars(self).items() if name not in ("images", "before")}
        kernel(**given)
        return self.out

    def quantize(self) -> Case:
        """The same with a prefix of int8, as near as that is."""
        for name in ("k", "v"):
            exact = getattr(self, f"{name}_prefix").float()
            scale = exact.abs().amax(-1) / 127
            setattr(self, f"{name}_prefix", (exact / scale[..., None]).round().to(torch.int8))
            setattr(self, f"{name}_scale", scale)
        return self

    def prefixes(self) -> list[torch.Tensor]:
        """Keys and values of the prefixes in the dtype of ``q``."""
        both = (self.k_prefix, self.k_scale), (self.v_prefix, self.v_scale)
        return [x if scale is None else (x * scale[..., None]).to(self.q.dtype) for x, scale in both]

    def dequantize(self) -> Case:
        self.k_prefix, self.v_prefix = self.prefixes()
        self.k_scale = self.v_scale = None
        return self

    def cancel(self) -> Case:
        """The same with rounding errors for results: the second half of the prefix takes away what the first gives."""
        half = self.k_prefix.shape[2] // 2
        self.k_prefix[:, :, half:] = self.k_prefix[:, :, :half]
        self.v_prefix[:, :, half:] = -self.v_prefix[:, :, :half]
        return self

    def leave_out(self, image: int) -> list[int]:
        """The same with the tiles of an image left out, and memory before the first prefix; gives their rows."""
        self.tiles[self.tiles[:, 2] == image, 2] = -1
        for name in ("k_prefix", "v_prefix"):
            prefix = getattr(self, name)
            setattr(self, name, torch.cat([prefix[:1], prefix])[1:])
        return [row for row, own in enumerate(self.images) if own == image]

    def keys_values(self, row: int, prefixes: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """All that a row sees, (H, tokens, head_dim), float64, on the CPU."""
        prefix = [x[self.images[row]] for x in prefixes]
        if self.kv_index is None:
            return prefix
        named = self.kv_index[row, : self.text_len[row]].long().cpu()
        both = []
        for name, own in zip(("k", "v"), prefix, strict=True):
            seen = self.before[name][named].double()
            new = getattr(self, f"{name}_new")
            if new is not None and len(named):
                seen[-1] = new[row].cpu().double()
            both.append(torch.cat([own, seen.transpose(0, 1)], 1))
        return both

    def truth(self) -> torch.Tensor:
        """float64 (R, H, head_dim), on the CPU."""
        out = torch.empty(self.q.shape, dtype=torch.float64)
        prefixes = [x.cpu().double() for x in self.prefixes()]
        for row, q in enumerate(self.q.cpu().double()):
            k, v = self.keys_values(row, prefixes)
            out[row] = torch.from_numpy(reference.attention(q, k, v, scale=self.scale))
        return out

    def error(self) -> float:
        """Largest difference of ``out`` from the truth, in units of what is allowed; NaN counts as infinite.

        Allowed is one rounding of the result, and one of each weight, whose sum is one.
        """
        truth = self.truth()
        largest = self.prefixes()[1].abs().amax().item() if self.v_prefix.numel() else 0.0
        allowed = ROUNDING[self.out.dtype] * (truth.abs() + largest) + 1e-6
        error = ((self.out.cpu().double() - truth).abs() / allowed).max().item()
        return float("inf") if np.isnan(error) else error


def make_case(
    rows_per_image: Sequence[int],
    prefix: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    text: Sequence[int] | None = None,
    heads: int = 2,
    tile_rows: int = 16,
    append: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """``text``: how many text tokens each row sees, in random entries of the store; what no row names is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    images = [image for image, rows in enumerate(rows_per_image) for _ in range(rows)]
    rows = len(images)
    case = Case(
        q=random(rows, heads, head_dim),
        tiles=attention_tiles(images, tile_rows).to(device),
        k_prefix=random(len(rows_per_image), heads, prefix, head_dim),
        v_prefix=random(len(rows_per_image), heads, prefix, head_dim),
        out=torch.full((rows, heads, head_dim), torch.nan, device=device, dtype=dtype),
        images=images,
        tile_rows=tile_rows,
        scale=head_dim**-0.5,
    )
    if text is None:
        return case
    longest, stored = max(text, default=0), 2 * sum(text) + 1
    free = torch.randperm(stored, generator=generator).tolist()
    kv_index = torch.full((rows, max(longest, 1)), stored + 12345, dtype=torch.int32)  # never to be followed
    k_text, v_text = (torch.full((stored, heads, head_dim), torch.nan, dtype=dtype) for _ in range(2))
    for row, length in enumerate(text):
        for i in range(length):
            # Beams of one image share their first token.
            shared = i == 0 and row and images[row] == images[row - 1] and text[row - 1] > 1 and length > 1
            entry = int(kv_index[row - 1, 0]) if shared else free.pop()
            kv_index[row, i] = entry
            if not (append and i + 1 == length):
                k_text[entry], v_text[entry] = random(heads, head_dim).cpu(), random(heads, head_dim).cpu()
    case.before = {"k": k_text.clone(), "v": v_text.clone()}
    case.k_text, case.v_text, case.kv_index = k_text.to(device), v_text.to(device), kv_index.to(device)
    case.text_len = torch.tensor(text, dtype=torch.int32, device=device)
    if append:
        case.k_new, case.v_new = random(rows, heads, head_dim), random(rows, heads, head_dim)
    return case
