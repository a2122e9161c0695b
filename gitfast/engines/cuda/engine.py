"""The CUDA engine: own kernels for every step of text, torch's matrix products for images."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gitfast import _C
from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import EngineStats
from gitfast.engines.cuda.decoder import Decoder, WeightFormat
from gitfast.engines.cuda.encoder import Encoder, ImageKind, PrefixDtype
from gitfast.engines.cuda.fused import DECODE_MODES, DecodeMode, FusedDecoder
from gitfast.engines.cuda.images import EncodePlan, ImageEncoder
from gitfast.engines.cuda.search import PlanKey, SearchPlan, Way
from gitfast.engines.cuda.sequences import CudaPrefix, TextBatch, group_prefixes
from gitfast.engines.search import generate_with, generations, native_options
from gitfast.errors import EngineError
from gitfast.torch_model import GitModel, load_weights
from gitfast.types import Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback

_PLANS_KEPT, _PLAN_BYTES_KEPT = 8, 4 << 30
_ROWS_AT_ONCE = 64
_REFILLS = 4  # as many rows as are decoded at once are searched for in one go: their prefixes and texts are in memory

DTYPES: dict[str, tuple[torch.dtype, WeightFormat]] = {
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "int8": (torch.bfloat16, "int8"),
    "float8": (torch.bfloat16, "float8"),
}
PREFIX_DTYPES: tuple[PrefixDtype, ...] = ("auto", "int8")


class CudaEngine:
    """``gitfast.engines.base.Engine`` on one CUDA device. Calls from several threads run one after another.

    A row's text is bitwise independent of the other rows of its call, as long as they take the same kernels: see
    ``decode`` of ``from_weights``. An image's prefix may depend on its batch, by the matrix products that cuBLAS
    chooses.
    """

    name = "cuda"
    _ids = itertools.count()

    def __init__(
        self,
        model: GitModel,
        weights: WeightFormat = None,
        prefix_dtype: PrefixDtype = "auto",
        normalization: Normalization | None = None,
        decode: DecodeMode = "operations",
        rows_at_once: int = _ROWS_AT_ONCE,
    ) -> None:
        self.normalization = normalization
        self.rows_at_once = rows_at_once
        self.config = model.config
        self.stats = EngineStats()
        self._id = next(self._ids)
        self._lock = threading.Lock()
        self._plans: dict[PlanKey, SearchPlan] = {}  # the last used is last
        self._stored = weights
        model.eval().requires_grad_(False)
        encoder = Encoder(model, prefix_dtype, normalization)
        self._images = ImageEncoder(encoder)
        self._decoder = Decoder(model, weights, encoder.prefix_dtype)
        self._fused = FusedDecoder.of(self._decoder, decode)

    @classmethod
    def from_weights(
        cls,
        config: GitConfig,
        weights: Mapping[str, np.ndarray | Tensor],
        *,
        device: str | torch.device = "cuda",
        dtype: str = "bfloat16",
        prefix_dtype: str = "auto",
        normalization: Normalization | None = None,
        decode: str = "operations",
        rows_at_once: int = _ROWS_AT_ONCE,
    ) -> CudaEngine:
        """Build from a checkpoint's tensors, by Hugging Face name.

        ``dtype`` is that of weights and activations, "bfloat16" or "float16"; or "int8" or "float8", which store the
        decoder's and the head's matrices for text in 8 bits, one scale per row, beside bfloat16 activations. Sums,
        softmax, norms and logits are float32.

        ``prefix_dtype`` is that of the keys and values of images: "auto", that of the activations, or "int8", half the
        bytes, with one scale per token and head (for heads of 64, which all published models have).

        ``decode`` says how up to eight rows that see prefixes of one length are decoded: by a kernel for each of the
        "operations", as more rows are; by two for each of the "layers"; or by one for a whole "text", where all that is
        asked for is a search that runs on the device. What model or device are not fit for takes the one before.

        ``rows_at_once``: sequences decoded together at most. In calls of more, the next one takes the place of one that
        has ended, on the device; with prefixes of several lengths, and with rules, so many end before the next begin.

        ``normalization`` is what ``encode`` does to pixels given as bytes; without, it takes none.

        Raises:
            CheckpointError: tensors are missing, unexpected or mis-shaped.
            EngineError: the kernels do not take the model's widths, or device memory does not suffice.
            ValueError: ``dtype``, ``prefix_dtype``, ``decode`` or ``rows_at_once`` cannot be.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        if prefix_dtype not in PREFIX_DTYPES:
            raise ValueError(f"prefix_dtype: expected {', '.join(map(repr, PREFIX_DTYPES))}, got {prefix_dtype!r}")
        if decode not in DECODE_MODES:
            raise ValueError(f"decode: expected {', '.join(map(repr, DECODE_MODES))}, got {decode!r}")
        if rows_at_once < 1:
            raise ValueError(f"rows_at_once: expected at least 1, got {rows_at_once}")
        activations, stored = DTYPES[dtype]
        model = GitModel(config)
        load_weights(model, weights)
        try:
            with _memory_errors():
                model.to(device=device, dtype=activations)
                how = cast(PrefixDtype, prefix_dtype), normalization, cast(DecodeMode, decode)
                return cls(model, stored, *how, rows_at_once)
        except ValueError as error:
            raise EngineError(f"cuda engine: does not take this model in {dtype}: {error}") from error

    @torch.inference_mode()
    def encode(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> list[CudaPrefix]:
        """Images (B, 3, H, W) or clips (B, T, 3, H, W), normalised -> one prefix per image or clip.

        With ``normalization`` also bytes, uint8 (B, H, W, 3) or (B, T, H, W, 3). The result is on its way when this
        returns: the device need not have computed it.

        Raises:
            ValueError: dtype, rank, size or number of frames do not suit the model.
            EngineError: device memory does not suffice for one image; the engine stays usable.
        """
        pixels = np.asarray(pixel_values)
        kind = self._kind(pixels, interpolate_positions)
        with self._lock, _memory_errors():
            pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32, copy=False)
            try:
                batches = list(self._images(pixels, kind))
            finally:
                self._count_plans()
            self.stats.encoded_images += len(batches)
            return [CudaPrefix.of(batch, self._id) for batch in batches]

    @property
    def dtype(self) -> str:
        """How matrices for text are stored, as ``from_weights`` takes it."""
        return self._stored or str(self._decoder.like.dtype).removeprefix("torch.")

    def plans(self) -> list[EncodePlan]:
        """What is kept for encoding batches of one size and kind, the last used last."""
        with self._lock:
            return self._images.plans()

    @torch.inference_mode()
    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        """Row r continues ``prompts[r]`` on ``prefixes[r]``, ``rows_at_once`` together. See ``Engine.generate``.

        Raises:
            ValueError: an option or prompt that cannot be; the message names it.
            EngineError: device memory does not suffice; the engine stays usable.
        """
        config = self.config
        given = self._checked(prefixes, prompts, options.max_new_tokens)
        with self._lock, _memory_errors():
            self.stats.prefill_tokens += sum(map(len, prompts))
            native = native_options(options, config.eos_token_id)
            _C.check_search(native, prompts, config.vocab_size)
            way = Way.of(options, config.vocab_size)
            if on_token is not None and not (way and self._tells(way, given)):
                return self._search_on_host(given, prompts, options, on_token)
            rows = max(options.num_beams, options.num_return_sequences)
            at_once = self.rows_at_once * (_REFILLS if way and len(_lengths(given)) == 1 else 1)
            found = []
            for part in _parts(len(prompts), max(1, at_once // rows)):
                if way is None:
                    found += self._search_on_host(given[part], prompts[part], options)
                else:
                    found += self._search(way, given[part], prompts[part], native, on_token)
            return found

    @torch.inference_mode()
    def score(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token of ``sequences[r]`` but its first, given those before: float32 (len - 1,)."""
        given = self._checked(prefixes, sequences, 0, name="sequences")
        with self._lock, _memory_errors():
            text = TextBatch(self._decoder, given, sequences, len(sequences), 0)
            log_probs = self._decoder.logits(text.prompts(sequences, every_token=True)).log_softmax(-1)
            scores, first = [], 0
            for ids in sequences:
                targets = torch.as_tensor(ids[1:], device=log_probs.device, dtype=torch.int64)
                rows = log_probs[first : first + len(ids) - 1]
                scores.append(rows.gather(1, targets[:, None])[:, 0].cpu().numpy())
                first += len(ids)
            return scores

    def _kind(self, pixels: np.ndarray, interpolate_positions: bool) -> ImageKind:
        """Of pixels that suit the model."""
        config, vision = self.config, self.config.vision_config
        shape, as_bytes = pixels.shape, pixels.dtype == np.uint8
        if as_bytes and self.normalization is None:
            raise ValueError("pixel_values: expected float32; this engine was not told how to normalise bytes")
        if not as_bytes and not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(f"pixel_values: expected float32 or uint8, got {pixels.dtype}")
        image = "H, W, 3" if as_bytes else "3, H, W"
        if pixels.ndim not in (4, 5) or shape[-1 if as_bytes else -3] != 3:
            raise ValueError(f"pixel_values: expected (B, {image}) or (B, T, {image}), got {shape}")
        frames, limit = shape[1] if pixels.ndim == 5 else None, config.num_image_with_embedding or 0
        if frames is not None and not 1 <= frames <= limit:
            raise ValueError(f"pixel_values: this model takes clips of at most {limit} frames, got {frames}")
        size = shape[-3:-1] if as_bytes else shape[-2:]
        if size != (vision.image_size,) * 2 and not interpolate_positions:
            raise ValueError(f"pixel_values: expected images of {(vision.image_size,) * 2}, got {size}")
        if min(size) < vision.patch_size:
            raise ValueError(f"pixel_values: expected images of at least one patch, got {size}")
        return ImageKind(frames, size[0] // vision.patch_size, size[1] // vision.patch_size)

    def _count_plans(self) -> None:
        plans = self._images.plans()
        self.stats.extra["encode_plans"] = len(plans)
        self.stats.extra["encode_plan_bytes"] = sum(plan.nbytes for plan in plans)
        self.stats.extra["padded_images"] = self._images.padded

    def _tells(self, way: Way, prefixes: Sequence[CudaPrefix | None]) -> bool:
        """Whether tokens can be told while they are searched for on the device."""
        if self._fused is None or way.rows > 1 or way.temperature is not None:
            return False
        rows, groups = len(prefixes), len(_lengths(prefixes))
        return self._fused.mode == "text" and self._fused.takes(rows, groups) and rows <= self.rows_at_once

    def _search_on_host(
        self,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        """By the C++ search, from the device's logits."""
        rows = len(prompts) * max(options.num_beams, options.num_return_sequences)
        text = TextBatch(self._decoder, prefixes, prompts, rows, options.max_new_tokens)

        def step(ids: Sequence[Sequence[int]], parents: Sequence[int] | None, items: Sequence[int]) -> Tensor:
            self.stats.decode_steps += parents is not None
            hidden = text.prompts(ids) if parents is None else text.step([i for (i,) in ids], parents, items)
            return self._decoder.logits(hidden).cpu()

        vocab_size, eos = self.config.vocab_size, self.config.eos_token_id
        return generate_with(step, prompts, options, vocab_size=vocab_size, eos_token_id=eos, on_token=on_token)

    def _search(
        self,
        way: Way,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: dict[str, Any],
        on_token: TokenCallback | None,
    ) -> list[list[Generation]]:
        """On the device."""
        groups, places = group_prefixes(prefixes)
        tokens = max(map(len, prompts)) + options["max_new_tokens"]
        key = PlanKey.of(way, places, groups, tokens, self.rows_at_once)
        plan = self._plans.pop(key, None) or self._new_plan(key)
        results, steps = plan.run(groups, places, prompts, options, on_token)
        self.stats.decode_steps += steps - 1
        self._plans[key] = plan  # one that fails is gone
        while len(self._plans) > _PLANS_KEPT or sum(kept.nbytes for kept in self._plans.values()) > _PLAN_BYTES_KEPT:
            if self._plans.pop(next(iter(self._plans))) is plan:
                break
        return generations(results)

    def _new_plan(self, key: PlanKey) -> SearchPlan:
        """The memory of others that are kept makes room if need be."""
        given = self._decoder, self._fused, key, self.config.eos_token_id
        try:
            return SearchPlan(*given)
        except torch.OutOfMemoryError:
            if not self._plans:
                raise
        self._plans.clear()
        torch.cuda.empty_cache()
        return SearchPlan(*given)

    def _checked(
        self,
        prefixes: Sequence[ImagePrefix | None],
        texts: Sequence[Sequence[int]],
        new_tokens: int,
        name: str = "prompts",
    ) -> list[CudaPrefix | None]:
        """The prefixes, all of this engine; the texts fit the model."""
        if len(prefixes) != len(texts):
            raise ValueError(f"prefixes: expected one for each of the {len(texts)} {name}, got {len(prefixes)}")
        config = self.config
        for r, (prefix, ids) in enumerate(zip(prefixes, texts, strict=True)):
            if prefix is not None and getattr(prefix, "engine", None) != self._id:
                raise ValueError(f"prefixes[{r}]: was encoded by another engine")
            if not len(ids):
                raise ValueError(f"{name}[{r}]: expected at least one token id")
            if len(ids) + new_tokens > config.max_position_embeddings:
                more = f" and {new_tokens} new ones" if new_tokens else ""
                limit = config.max_position_embeddings
                raise ValueError(f"{name}[{r}]: {len(ids)} tokens{more} exceed the model's {limit} text positions")
            for token in ids:
                if not 0 <= token < config.vocab_size:
                    raise ValueError(f"{name}[{r}]: token id {token} is outside the vocabulary of {config.vocab_size}")
        return [cast("CudaPrefix | None", prefix) for prefix in prefixes]


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, first + size)


def _lengths(prefixes: Sequence[CudaPrefix | None]) -> set[int]:
    return {0 if prefix is None else prefix.num_tokens for prefix in prefixes}


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns what torch says of memory into an EngineError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"cuda engine: {error}") from error
