"""Stream ordering in the CUDA engine, with events that only record the calls made on them."""

from __future__ import annotations

import pytest
import torch

from gitfast.engines.cuda.persistent import TokenStream
from gitfast.engines.cuda.sequences import CudaPrefix, wait_until_ready
from gitfast.ops.cuda_search import SearchSize, SearchState


class Stream:
    """Notes the events that it waits for."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


class End:
    """The end of a kernel, which has come by the time somebody waits for it."""

    over = False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.over = True


def test_a_stream_waits_for_prefixes_encoded_on_others() -> None:
    stream, first, second, keys = Stream(), object(), object(), torch.zeros(1, 1, 1, 16)
    prefixes = [CudaPrefix(keys, keys, 0, ready=event) for event in (first, first, second, None)]
    wait_until_ready([*prefixes, None], stream)
    assert stream.waited == [first, second]


def streamed(tokens: list[list[int]]) -> TokenStream:
    """A stream to which the device has written these tokens of two rows; its kernel still runs."""
    state = SearchState(SearchSize(2, 1, 2, 1, False, 4), 9, torch.device("cpu"))
    stream = TokenStream(state)
    stream._end = End()
    stream.memory[0] = len(tokens)
    stream.memory[1 : 1 + 2 * len(tokens)] = [token for step in tokens for token in step]
    return stream


def test_memory_outlives_a_callback_that_raises() -> None:
    stream = streamed([[1, 2]])

    def fail(row: int, ids: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.report(fail)
    assert stream._end.over


def test_memory_outlives_a_callback_that_stops() -> None:
    stream, heard = streamed([[1, 2], [3, 9]]), []

    def stop(row: int, ids: list[int]) -> bool:
        heard.append((row, ids))
        return len(heard) < 3

    assert stream.report(stop) == 2
    assert heard == [(0, [1]), (1, [2]), (0, [3]), (1, [9])]
    assert stream._end.over


def test_all_rows_may_end_before_the_kernel() -> None:
    stream, heard = streamed([[1, 9], [9, -1]]), []
    assert stream.report(lambda row, ids: heard.append((row, ids))) == 2
    assert heard == [(0, [1]), (1, [9]), (0, [9])]
    assert stream._end.over
