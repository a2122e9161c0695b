"""Encode images into prefixes in batches of a few sizes, each of which is captured as a graph.

The sizes are powers of two: at most seven graphs for images of one kind. A batch between two sizes is padded to the
larger if no more than a quarter of that is padding; otherwise the smaller size goes first and the rest follows. So
padding costs at most a third of what was asked for, and a batch of 33 takes 32 and 1 images, not 64. The largest size
is bounded by tokens: with 64 images of 224 pixels the products have many times the rows that fill a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gitfast.engines.cuda.encoder import Encoder, ImageKind, PrefixBatch
from gitfast.engines.cuda.graphs import CapturedStep, capture
from gitfast.engines.cuda.transfer import Uploads

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # images or clips encoded together
_MAX_BATCH_TOKENS = 64 * 257  # 64 images of git-large, 16 of 480 pixels, 8 clips
_MAX_PLANS = 16  # one kind has seven; with images of any aspect ratio, kinds come and go


@dataclass(frozen=True, kw_only=True)
class EncodePlan:
    """A description of the memory and graph kept for encoding batches of one size and kind."""

    images: int  # or clips
    frames: int | None  # frames of a clip
    height: int
    width: int
    captured: bool  # as a graph; a plan is captured when it is used again
    nbytes: int  # device memory, beside the weights

    @property
    def label(self) -> str:
        """Describe the plan in words."""
        frames = "" if self.frames is None else f" clips of {self.frames} frames"
        return f"batches of {self.images}{frames}, {self.height} x {self.width} pixels"


def next_bucket(images: int, largest: int) -> int:
    """Return the size of the batch that the next of so many images go into; ``largest`` is one of ``BUCKETS``."""
    padded = next((size for size in BUCKETS if size >= images), BUCKETS[-1])
    if padded <= largest and 4 * images >= 3 * padded:
        return padded
    return max(size for size in BUCKETS if size <= min(images, largest))


class ImageEncoder:
    """An ``Encoder`` with memory for its batches. Not thread-safe."""

    def __init__(self, network: Encoder) -> None:
        self._network = network
        self._uploads = Uploads(network.like.device)
        self._captures = torch.cuda.Stream(network.like.device) if network.like.is_cuda else None
        self._enqueued: torch.cuda.Event | None = None  # after all that was enqueued here
        self._plans: dict[tuple[int, ImageKind], _BatchMemory] = {}  # the last used is last
        self._largest: dict[ImageKind, int] = {}  # less where memory did not suffice for more
        self.padded = 0  # images that were computed for nothing

    def __call__(self, pixels: np.ndarray, kind: ImageKind) -> Iterator[PrefixBatch]:
        """Encode images into prefixes, each in memory of its own: batches of one.

        ``pixels``: as ``Encoder.unfold`` takes them, but for clips (B, T, ...).

        Raises:
            torch.OutOfMemoryError: memory does not suffice for a single image or clip.
        """
        done = 0
        while done < len(pixels):
            bucket = next_bucket(len(pixels) - done, self._largest_bucket(kind))
            piece = pixels[done : done + bucket]
            try:
                with self._in_turn():
                    prefixes = self._encode(piece, bucket, kind)
            except torch.OutOfMemoryError:
                if bucket == 1:
                    self._release()
                    raise
                prefixes = None
            if prefixes is None:  # outside of the handler, which held on to memory
                self._release()
                self._largest[kind] = bucket // 2
                continue
            yield from prefixes
            self.padded += bucket - len(piece)
            done += len(piece)

    def plans(self) -> list[EncodePlan]:
        """List the plans kept, the last used last."""
        edge = self._network.config.vision_config.patch_size
        return [
            EncodePlan(
                images=images,
                frames=kind.frames,
                height=kind.rows * edge,
                width=kind.columns * edge,
                captured=plan.graph is not None,
                nbytes=plan.nbytes,
            )
            for (images, kind), plan in self._plans.items()
        ]

    def _largest_bucket(self, kind: ImageKind) -> int:
        fitting = max(1, _MAX_BATCH_TOKENS // kind.tokens)
        return min(max(size for size in BUCKETS if size <= fitting), self._largest.get(kind, BUCKETS[-1]))

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let the current stream wait for the last batch, which may be another's: they work in the same memory."""
        if self._captures is None:
            yield
            return
        stream = torch.cuda.current_stream(self._network.like.device)
        if self._enqueued is not None:
            stream.wait_event(self._enqueued)
        try:
            yield
        finally:
            self._enqueued = torch.cuda.Event()
            self._enqueued.record(stream)

    def _encode(self, pixels: np.ndarray, bucket: int, kind: ImageKind) -> list[PrefixBatch]:
        plan = self._plans.pop((bucket, kind), None) or _BatchMemory(self._network, bucket, kind)
        frames = pixels if kind.frames is None else pixels.reshape(-1, *pixels.shape[2:])
        with self._uploads.on_device(frames) as uploaded:
            self._network.unfold(uploaded, plan.inputs, kind)
        other = next((other.graph for other in self._plans.values() if other.graph is not None), None)
        plan.run(self._captures, beside=other)
        prefixes = _split(plan.out, len(pixels))
        self._plans[bucket, kind] = plan
        if len(self._plans) > _MAX_PLANS:
            self._plans.pop(next(iter(self._plans)))
        return prefixes

    def _release(self) -> None:
        self._plans.clear()
        if self._network.like.is_cuda:
            torch.cuda.empty_cache()


class _BatchMemory:
    """Inputs and outputs of one size and kind, at addresses that stay; and their graph."""

    def __init__(self, network: Encoder, images: int, kind: ImageKind) -> None:
        self._network, self._kind = network, kind
        self.inputs, self.out = network.inputs(images, kind), network.prefixes(images, kind)
        self.nbytes = sum(x.nbytes for x in (*self.inputs, *self.out) if x is not None)
        self._step = CapturedStep()

    @property
    def graph(self) -> torch.cuda.CUDAGraph | None:
        """The captured graph, once there is one."""
        return self._step.graph

    def run(self, captures: torch.cuda.Stream | None, *, beside: torch.cuda.CUDAGraph | None) -> None:
        """Fill ``out``. A graph is captured on ``captures``, if there is such a stream, in the memory of ``beside``."""

        def measured(enqueue: Callable[[], None]) -> torch.cuda.CUDAGraph:
            device = self.out.data.device
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(device)  # from here on the graph's memory, which is taken from no cache
            graph = capture(enqueue, stream=captures, beside=beside)
            self.nbytes += torch.cuda.memory_reserved(device) - before
            return graph

        self._step(self._compute, measured if captures is not None else None)

    def _compute(self) -> None:
        self._network(self.inputs, self._kind, self.out)


def _split(batch: PrefixBatch, images: int) -> list[PrefixBatch]:
    """Copy the first images of a batch to memory of their own, all by one kernel or two."""
    copies: list[list[torch.Tensor]] = []
    for x in batch:
        if x is not None:
            given = list(x[:images].unbind())
            copies.append([torch.empty_like(one) for one in given])
            torch._foreach_copy_(copies[-1], given)
    scales = copies[1] if batch.scales is not None else [None] * images
    return [PrefixBatch(data, scale) for data, scale in zip(copies[0], scales, strict=True)]
