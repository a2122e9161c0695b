"""Copy pixels to a CUDA device: through pinned memory, on a stream of its own, two arrays at a time.

While the device computes with one array the next is copied beside it: a copy waits for its own buffer only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class _Buffer:
    """Pinned memory and as much on the device, with events after the copy between them and after its last use."""

    def __init__(self) -> None:
        self.host = self.device = torch.empty(0, dtype=torch.uint8)
        self.copied, self.read = torch.cuda.Event(), torch.cuda.Event()

    def reserve(self, nbytes: int, device: torch.device) -> None:
        """Make room for so many bytes; the caller's stream is the one that copies."""
        if len(self.device) < nbytes:
            self.read.synchronize()  # and so has been copied
            self.host = self.device = torch.empty(0, dtype=torch.uint8)  # the old ones go first
            self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            self.device = torch.empty(nbytes, dtype=torch.uint8, device=device)


class Uploads:
    """Copies of arrays to one device, in order. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._next, self._after = _Buffer(), _Buffer()

    @contextlib.contextmanager
    def on_device(self, array: np.ndarray) -> Iterator[Tensor]:
        """Give the array to kernels that are enqueued on torch's current stream before the context ends."""
        if self._device.type != "cuda":
            yield torch.tensor(array)
            return
        buffer, (self._next, self._after) = self._next, (self._after, self._next)
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            buffer.reserve(array.nbytes, self._device)
            host, device = (_shaped(x, array) for x in (buffer.host, buffer.device))
            buffer.copied.synchronize()
            np.copyto(host.numpy(), array)
            self._stream.wait_event(buffer.read)
            device.copy_(host, non_blocking=True)
            buffer.copied.record(self._stream)
        compute.wait_event(buffer.copied)
        try:
            yield device
        finally:
            buffer.read.record(compute)


def _shaped(memory: Tensor, like: np.ndarray) -> Tensor:
    """View as much of uint8 ``memory`` as the array needs, in its shape and dtype."""
    dtype = torch.uint8 if like.dtype == np.uint8 else torch.float32
    return memory[: like.nbytes].view(dtype).view(like.shape)
