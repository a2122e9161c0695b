"""Run models on a CUDA device: own kernels for every decode step, torch's matrix products for images."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import Engine, EngineStats
from gitfast.engines.checks import check_cancelled, check_generate, check_pixels, check_text
from gitfast.engines.cuda.decoder import Decoder, WeightFormat
from gitfast.engines.cuda.encoder import Encoder, ImageKind, PrefixDtype
from gitfast.engines.cuda.images import EncodePlan, ImageEncoder
from gitfast.engines.cuda.persistent import DECODE_MODES, DecodeMode, PersistentDecoder
from gitfast.engines.cuda.running_batch import FairLock, RunningBatch, TextCall
from gitfast.engines.cuda.search import REFILLS, DeviceSearch, SearchKey, SearchMode
from gitfast.engines.cuda.sequences import CudaPrefix, SequenceBatch, tokens_of, wait_until_ready
from gitfast.engines.search import generate_with, generations, native_options
from gitfast.errors import EngineError
from gitfast.torch_model import GitModel, build_model
from gitfast.types import CancelToken, Generation, GenerationOptions, ImagePrefix, Normalization, TokenCallback

_MAX_SEARCHES, _MAX_SEARCH_BYTES = 8, 4 << 30  # whose memory is kept for the next calls
_ROWS_AT_ONCE = 64

DTYPES: dict[str, tuple[torch.dtype, WeightFormat]] = {
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "int8": (torch.bfloat16, "int8"),
    "float8": (torch.bfloat16, "float8"),
}
PREFIX_DTYPES: tuple[PrefixDtype, ...] = ("auto", "int8")


class CudaEngine(Engine):
    """An engine on one CUDA device.

    Calls from several threads that are at work at the same time share the device: rows of greedy search, samples and
    beams without rules share every step, whatever their options, where their prefixes have one length; other work takes
    turns with them, a step or a batch of images at a time. Searches by the persistent kernel run one after another.

    A row's text is bitwise independent of the other rows of its call, as long as they take the same kernels: see
    ``decode`` of ``from_weights``. An image's prefix may depend on its batch, through the matrix products that cuBLAS
    chooses.
    """

    name = "cuda"
    rows_at_once: int
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
        self._lock = FairLock()
        self._searches: dict[SearchKey, DeviceSearch] = {}  # the last used is last
        self._format = weights
        model.eval().requires_grad_(False)
        encoder = Encoder(model, prefix_dtype, normalization)
        self._images = ImageEncoder(encoder)
        self._decoder = Decoder(model, weights, encoder.prefix_dtype)
        self._persistent = PersistentDecoder.create(self._decoder) if decode == "persistent" else None
        self._running = RunningBatch(
            self._open_search,
            self._keep_search,
            self._decoder.like.device,
            self._lock,
            self.stats,
            rows_at_once=lambda: self.rows_at_once,
        )
        if self._decoder.like.is_cuda:  # before other streams read the weights, which were laid out on this one
            torch.cuda.current_stream(self._decoder.like.device).synchronize()

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
        """Build an engine from a checkpoint's tensors, by Hugging Face name.

        ``dtype`` is that of weights and activations, "bfloat16" or "float16"; or "int8" or "float8", which store the
        matrices of the decoder and the head for text in 8 bits, one scale per row, with bfloat16 activations. Sums,
        softmax, norms and logits are float32.

        ``prefix_dtype`` is that of the keys and values of images: "auto", that of the activations, or "int8", half the
        bytes, with one scale per token and head (for heads of 64, which all published models have).

        ``decode`` is "operations", a kernel per operation for any number of rows, or "persistent": where up to eight
        rows see prefixes of one length and the search runs on the device, one kernel decodes until all sequences have
        ended. Other calls, and models and devices that it does not take, use "operations".

        ``rows_at_once``: rows decoded together at most. In calls of more, the next sequence takes the place of one that
        has ended, on the device; with prefixes of several lengths, or with rules, a batch ends before the next begins.

        ``normalization`` is applied by ``encode`` to pixels given as bytes; without it, none are taken.

        Raises:
            CheckpointError: tensors are missing, unexpected or mis-shaped.
            EngineError: the kernels do not take the model's widths, or device memory does not suffice.
            ValueError: ``dtype``, ``prefix_dtype``, ``decode`` or ``rows_at_once`` is none of those.
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
        model = build_model(config, weights)
        try:
            with _memory_errors():
                model.to(device=device, dtype=activations)
                how = cast(PrefixDtype, prefix_dtype), normalization, cast(DecodeMode, decode)
                return cls(model, stored, *how, rows_at_once)
        except ValueError as error:
            raise EngineError(f"cuda engine: does not take this model in {dtype}: {error}") from error

    @torch.inference_mode()
    def encode(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> list[CudaPrefix]:
        """Encode images (B, 3, H, W) or clips (B, T, 3, H, W), normalised: one prefix per image or clip.

        With ``normalization`` also bytes, uint8 (B, H, W, 3) or (B, T, H, W, 3). The device may still be computing when
        this returns; calls that use the prefixes wait for it, on whatever stream they run.

        Raises:
            ValueError: dtype, rank, size or number of frames do not suit the model.
            EngineError: device memory does not suffice for one image; the engine stays usable.
        """
        check_cancelled(cancel)
        kind = self._kind(pixel_values, interpolate_positions)
        with self._lock, _memory_errors():
            batches = list(self._images(np.asarray(pixel_values), kind))
            self.stats.encoded_images += len(batches)
            ready: torch.cuda.Event | None = None
            if self._decoder.like.is_cuda:
                ready = torch.cuda.Event()
                ready.record(torch.cuda.current_stream(self._decoder.like.device))
            return [CudaPrefix.of(batch, self._id, ready) for batch in batches]

    @property
    def dtype(self) -> str:
        """The ``dtype`` that ``from_weights`` was given."""
        return self._format or str(self._decoder.like.dtype).removeprefix("torch.")

    def plans(self) -> list[EncodePlan]:
        """List the plans kept for encoding batches of one size and kind, the last used last."""
        with self._lock:
            return self._images.plans()

    def placement(self) -> list[int]:
        """List the multiprocessors that ran the blocks of the last search by the persistent kernel; none before."""
        with self._lock:
            placed = None if self._persistent is None else self._persistent.placement
            return [] if placed is None else placed.tolist()

    @property
    def padded_images(self) -> int:
        """Images computed only to fill batches up, since the engine was built."""
        return self._images.padded

    @torch.inference_mode()
    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        *,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        """Continue ``prompts[r]`` on ``prefixes[r]``, ``rows_at_once`` rows together. See ``Engine.generate``.

        Raises:
            ValueError: an option or prompt that cannot be; the message names it.
            EngineError: device memory does not suffice; the engine stays usable.
        """
        config = self.config
        given = self._own(check_generate(prefixes, prompts, options, on_token, config, CudaPrefix))
        check_cancelled(cancel)
        if not given:
            return []
        native = native_options(options, config.eos_token_ids)
        self.stats.prefill_tokens += sum(map(len, prompts))
        # The search on the device ends at one token only.
        mode = SearchMode.of(options, config.vocab_size) if len(config.eos_token_ids) == 1 else None
        with _memory_errors():
            if on_token is not None and not (mode and self._can_stream(mode, given)):
                return self._search_on_host(given, prompts, options, on_token, cancel)
            rows = max(options.num_beams, options.num_return_sequences)
            at_once = self.rows_at_once
            if mode and len(set(map(tokens_of, given))) == 1:  # whole, or as many as the persistent kernel refills from
                at_once = REFILLS * at_once if self._is_persistent(mode, given) else rows * len(prompts)
            results = []
            for part in _parts(len(prompts), max(1, at_once // rows)):
                if mode is None:
                    results += self._search_on_host(given[part], prompts[part], options, None, cancel)
                elif self._is_persistent(mode, given[part]):
                    check_cancelled(cancel)
                    results += self._search_persistently(mode, given[part], prompts[part], native, on_token)
                else:
                    call = TextCall(mode, given[part], prompts[part], native, cancel)
                    results += generations(self._running.run(call))
            return results

    @torch.inference_mode()
    def score(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        check_cancelled(cancel)
        given = self._own(check_text(prefixes, sequences, "sequences", self.config, CudaPrefix))
        with self._lock, _memory_errors():
            self._wait_for(given)
            batch = SequenceBatch(self._decoder, given, sequences, len(sequences), 0)
            log_probs = self._decoder.logits(batch.prefill(sequences, every_token=True)).log_softmax(-1)
            scores, first = [], 0
            for ids in sequences:
                targets = torch.as_tensor(ids[1:], device=log_probs.device, dtype=torch.int64)
                rows = log_probs[first : first + len(ids) - 1]
                scores.append(rows.gather(1, targets[:, None])[:, 0].cpu().numpy())
                first += len(ids)
            return scores

    def _wait_for(self, prefixes: Sequence[CudaPrefix | None]) -> None:
        if self._decoder.like.is_cuda:
            wait_until_ready(prefixes, torch.cuda.current_stream(self._decoder.like.device))

    def _kind(self, pixels: np.ndarray, interpolate_positions: bool) -> ImageKind:
        """Check that pixels suit the model, and return their kind."""
        as_bytes = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
        if as_bytes:
            if self.normalization is None:
                raise ValueError("pixel_values: expected float32; this engine was not told how to normalise bytes")
            if pixels.ndim not in (4, 5) or pixels.shape[-1] != 3:
                raise ValueError(f"pixel_values: expected bytes (B, H, W, 3) or (B, T, H, W, 3), got {pixels.shape}")
            pixels = np.moveaxis(pixels, -1, -3)
        take_bytes = self.normalization is not None
        check_pixels(pixels, self.config, interpolate_positions=interpolate_positions, take_bytes=take_bytes)
        rows, columns = (size // self.config.vision_config.patch_size for size in pixels.shape[-2:])
        return ImageKind(pixels.shape[1] if pixels.ndim == 5 else None, rows, columns)

    def _is_persistent(self, mode: SearchMode, prefixes: Sequence[CudaPrefix | None]) -> bool:
        """Return whether one kernel takes all steps of these prompts; the head draws by a kernel of its own."""
        if self._persistent is None or mode.temperature is not None:
            return False
        rows = min(
            len(prefixes) * mode.rows, max(1, self.rows_at_once // mode.rows_per_sequence) * mode.rows_per_sequence
        )
        return self._persistent.takes(rows, len(set(map(tokens_of, prefixes))))

    def _can_stream(self, mode: SearchMode, prefixes: Sequence[CudaPrefix | None]) -> bool:
        """Return whether tokens can be reported while the search runs on the device."""
        greedy = mode.rows == 1 and mode.temperature is None
        return greedy and len(prefixes) <= self.rows_at_once and self._is_persistent(mode, prefixes)

    def _search_on_host(
        self,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        """Run the C++ search on the device's logits."""
        rows = len(prompts) * max(options.num_beams, options.num_return_sequences)
        with self._lock:
            self._wait_for(prefixes)
            batch = SequenceBatch(self._decoder, prefixes, prompts, rows, options.max_new_tokens)

        def step(ids: Sequence[Sequence[int]], parents: Sequence[int] | None, of_rows: Sequence[int]) -> Tensor:
            with self._lock:  # others have their turn between steps
                self.stats.decode_steps += parents is not None
                hidden = batch.prefill(ids) if parents is None else batch.step([i for (i,) in ids], parents, of_rows)
                return self._decoder.logits(hidden).cpu()

        vocab_size, eos = self.config.vocab_size, self.config.eos_token_ids
        return generate_with(
            step, prompts, options, vocab_size=vocab_size, eos_token_id=eos, on_token=on_token, cancel=cancel
        )

    def _search_persistently(
        self,
        mode: SearchMode,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        options: dict[str, Any],
        on_token: TokenCallback | None,
    ) -> list[list[Generation]]:
        """Search by one kernel."""
        tokens = max(map(len, prompts)) + options["max_new_tokens"]
        key = SearchKey.of(mode, prefixes, tokens, self.rows_at_once)
        with self._lock:
            self._wait_for(prefixes)
            search = self._open_search(key)  # one that fails is gone
            results, steps = search.run_persistent(search.join(prefixes, prompts, options), options, on_token)
            self.stats.decode_steps += steps - 1
            self.stats.persistent_searches += 1
            self._keep_search(key, search)
        return generations(results)

    def _keep_search(self, key: SearchKey, search: DeviceSearch) -> None:
        """Keep the memory of a search for the next, as far as it is worth it. Called with the lock."""
        if search.is_used_up:
            return
        kept = self._searches
        kept[key] = search
        while len(kept) > _MAX_SEARCHES or sum(each.nbytes for each in kept.values()) > _MAX_SEARCH_BYTES:
            if kept.pop(next(iter(kept))) is search:
                break

    def _open_search(self, key: SearchKey) -> DeviceSearch:
        """Take the memory that is kept for such a search, or make it. Called with the lock."""
        return self._searches.pop(key, None) or self._new_search(key)

    def _new_search(self, key: SearchKey) -> DeviceSearch:
        """Make memory for a search, freeing that of kept searches if need be."""
        given = self._decoder, self._persistent, key, self.config.eos_token_id
        try:
            return DeviceSearch(*given)
        except torch.OutOfMemoryError:
            if not self._searches:
                raise
        self._searches.clear()
        torch.cuda.empty_cache()
        return DeviceSearch(*given)

    def _own(self, prefixes: list[CudaPrefix | None]) -> list[CudaPrefix | None]:
        """Return the prefixes; raise ``ValueError`` where another engine has encoded one."""
        for r, prefix in enumerate(prefixes):
            if prefix is not None and prefix.engine != self._id:
                raise ValueError(f"prefixes[{r}]: was encoded by another engine")
        return prefixes


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, first + size)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's errors about memory into an EngineError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"cuda engine: {error}") from error
