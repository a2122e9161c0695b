"""Uploads over streams that are simulated: whatever order a device takes, every kernel reads its own array."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gitfast.engines.cuda import transfer as cuda_uploads
from gitfast.engines.cuda.transfer import Uploads


class Device:
    """Streams whose work is done late, in any order that their waits allow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams: list[Stream] = []

    def do_some(self, until: Callable[[], bool] | None = None) -> None:
        """A few things, or all that it takes."""
        for _ in range(10**6 if until else self.random.randrange(4)):
            if until and until():
                return
            ready = [stream for stream in self.streams if stream.work and stream.work[0][0]()]
            if not ready:
                assert until is None or until(), "work waits for what never comes"
                return
            self.random.choice(ready).work.pop(0)[1]()


class Stream:
    def __init__(self, device: Device) -> None:
        self.work: list[tuple[Callable[[], bool], Callable[[], object]]] = []  # what it waits for, what it does
        self.device = device
        device.streams.append(self)

    def add(self, do: Callable[[], object]) -> None:
        self.work.append((lambda: True, do))

    def wait_event(self, event: Event) -> None:
        awaited = event.recorded  # as of now
        self.work.append((lambda: event.done >= awaited, lambda: None))


class Event:
    def __init__(self, device: Device) -> None:
        self.recorded = self.done = 0
        self.device = device

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        number = self.recorded
        stream.add(lambda: setattr(self, "done", max(self.done, number)))

    def synchronize(self) -> None:
        awaited = self.recorded
        self.device.do_some(until=lambda: self.done >= awaited)


class DeviceMemory:
    """As much of a tensor as uploads touch; copies are done by the stream."""

    def __init__(self, data: torch.Tensor, current: Callable[[], Stream]) -> None:
        self.data, self.current = data, current

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: slice) -> DeviceMemory:
        return DeviceMemory(self.data[index], self.current)

    def view(self, *how: object) -> DeviceMemory:
        return DeviceMemory(self.data.view(*how), self.current)

    def copy_(self, host: torch.Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        self.current().add(lambda: self.data.copy_(host))


@pytest.fixture(params=range(20))
def simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    device = Device(request.param)
    stack = [Stream(device)]
    free = [torch.empty(1000, dtype=torch.uint8)]  # memory that one upload lets go is given to the next

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        stack.append(stream)
        yield
        stack.pop()

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool = False, device: object = None) -> object:
        if device is None:
            return torch.full((size,), 255, dtype=dtype)
        whole = free.pop(0) if free else torch.full((1000,), 255, dtype=dtype)
        memory = DeviceMemory(whole[:size], lambda: stack[-1])
        weakref.finalize(memory, free.append, whole)
        return memory

    cuda = SimpleNamespace(
        Stream=lambda _: Stream(device), Event=lambda: Event(device), stream=on, current_stream=lambda _: stack[-1]
    )
    fake = SimpleNamespace(cuda=cuda, empty=empty, uint8=torch.uint8, float32=torch.float32, tensor=torch.tensor)
    monkeypatch.setattr(cuda_uploads, "torch", fake)
    return SimpleNamespace(device=device, compute=stack[0])


def test_every_kernel_reads_its_own_array(simulated: SimpleNamespace) -> None:
    uploads, read = Uploads(torch.device("cuda")), {}
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 200, (rng.integers(1, 5), 6, 2, 3), dtype=np.uint8) for _ in range(12)]
    arrays = [array if i % 3 else array.astype(np.float32) for i, array in enumerate(arrays)]

    def kernel(i: int, there: DeviceMemory) -> None:
        read[i] = there.data.numpy().copy()

    for i, array in enumerate(arrays):
        given = array.copy()
        with uploads.on_device(given) as there:
            assert isinstance(there, DeviceMemory)
            simulated.compute.add(lambda i=i, there=there: kernel(i, there))
        given[:] = 7  # the caller's again
        simulated.device.do_some()
    simulated.device.do_some(until=lambda: len(read) == len(arrays))
    for i, array in enumerate(arrays):
        assert read[i].dtype == array.dtype
        np.testing.assert_array_equal(read[i], array)


def test_the_next_copy_does_not_wait_for_kernels(simulated: SimpleNamespace) -> None:
    uploads, started = Uploads(torch.device("cuda")), []
    array = np.zeros((2, 4, 4, 3), np.uint8)
    with uploads.on_device(array):
        pass
    simulated.compute.work.append((lambda: False, lambda: None))  # a kernel that goes on and on
    with uploads.on_device(array + 1) as there:
        simulated.compute.add(lambda: started.append(1))
    for _ in range(100):
        simulated.device.do_some()
    assert started == []
    assert there.data.min() == 1, "the second array was copied meanwhile"
