"""Capture repeated work as a graph, and replay it as one launch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch


def capture(
    enqueue: Callable[[], None],
    *,
    stream: torch.cuda.Stream | None = None,
    beside: torch.cuda.CUDAGraph | None = None,
) -> torch.cuda.CUDAGraph:
    """Capture the work of ``enqueue`` as a graph. An error leaves no stream in the middle of a capture.

    Other threads may allocate meanwhile: only this thread's forbidden calls are errors.

    Args:
        enqueue: Runs once, without effect on the device.
        stream: The stream to capture on; None takes a new one. cuBLAS keeps memory for every stream it has seen.
        beside: A graph that is never replayed at the same time: both work in the same memory.
    """
    graph, stream = torch.cuda.CUDAGraph(), stream or torch.cuda.Stream()
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=None if beside is None else beside.pool(), capture_error_mode="thread_local")
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the failure of the capture is known
                graph.capture_end()
            raise
        graph.capture_end()
    current.wait_stream(stream)
    return graph


class CapturedStep:
    """A step that enqueues the same kernels again and again: directly the first time, for loading and preparation
    that a graph must not do, then captured as a graph and replayed."""

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self._ran = False

    def __call__(
        self, enqueue: Callable[[], None], capture: Callable[[Callable[[], None]], torch.cuda.CUDAGraph] | None
    ) -> None:
        """Run one step. ``capture`` makes a graph of it, like :func:`capture`; with None it is never captured."""
        if self.graph is None and self._ran and capture is not None:
            self.graph = capture(enqueue)
        if self.graph is not None:
            self.graph.replay()
        else:
            enqueue()
            self._ran = True
