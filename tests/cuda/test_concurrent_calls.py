"""Calls of several threads to one CUDA engine: they share searches, and none touches another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.cuda.running_batch import FairLock
from gitfast.engines.cuda.search import DeviceSearch
from gitfast.engines.cuda.sequences import CudaPrefix
from gitfast.errors import CancelledError, DeadlineError
from gitfast.inputs.processor import Processor
from gitfast.types import CancelToken, Generation, GenerationOptions

from support.cuda.engine_cases import IMAGES, make_engine
from support.tiers import slow

GREEDY = GenerationOptions(max_new_tokens=6)
WAIT_S = 300  # for what comes at once, but on a busy machine

Call = tuple[int, str, GenerationOptions]  # image, question, options


class Scene:
    """An engine in whose first search others' calls arrive: steps begin once all of them wait."""

    def __init__(self, engine: CudaEngine, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.processor = engine, processor
        self.prefixes: list[CudaPrefix] = engine.encode(processor.images(IMAGES))
        self.slots: list[tuple[int, int]] = []  # slots of each step, and its prompts
        self.before_step: Callable[[int], None] = lambda number: None  # gets the number of steps so far
        advance = DeviceSearch.advance

        def noted(search: DeviceSearch) -> bool:
            self.before_step(len(self.slots))
            self.slots.append((search._slots, search._state.prompts - len(search._free)))
            return advance(search)

        monkeypatch.setattr(DeviceSearch, "advance", noted)

    def generate(self, call: Call, cancel: CancelToken | None = None) -> list[list[Generation]]:
        image, question, options = call
        prompt = self.processor.tokenizer.prompt(question)
        return self.engine.generate([self.prefixes[image]], [prompt], options, cancel=cancel)

    def together(self, calls: list[Call], pool: ThreadPoolExecutor) -> list[Future[list[list[Generation]]]]:
        """Begin the first call, and the others before its first step."""
        futures: list[Future[list[list[Generation]]]] = []

        def let_others_come(number: int) -> None:
            if number == 0:
                futures.extend(pool.submit(self.generate, call) for call in calls[1:])
                self.wait_for_calls(len(calls))

        self.before_step = let_others_come
        first = pool.submit(self.generate, calls[0])
        first.exception(WAIT_S)  # the others have been asked by then
        return [first, *futures]

    def wait_for_calls(self, count: int) -> None:
        end = time.monotonic() + WAIT_S
        while len(self.engine._running._calls) < count:
            assert time.monotonic() < end, "the calls do not come"
            time.sleep(0.001)


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


@pytest.fixture
def scene(device: str, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(make_engine(device, shallow=True), processor, monkeypatch)


def test_calls_share_steps_whatever_their_options(scene: Scene, pool: ThreadPoolExecutor) -> None:
    calls: list[Call] = [
        (0, "", GREEDY),
        (1, "what color ?", GREEDY),
        (2, "", replace(GREEDY, max_new_tokens=3)),
        (0, "how many ?", replace(GREEDY, max_new_tokens=5)),
        (1, "", GREEDY),
    ]
    alone = [scene.generate(call) for call in calls]
    steps_alone = len(scene.slots)
    scene.slots.clear()
    assert [future.result(WAIT_S) for future in scene.together(calls, pool)] == alone
    assert len(scene.slots) < steps_alone
    assert max(prompts for _, prompts in scene.slots) == len(calls) - 1  # all but the first, which had begun


@pytest.mark.parametrize(
    "options",
    [
        [
            GenerationOptions(num_beams=2, max_new_tokens=4),
            GenerationOptions(num_beams=2, num_return_sequences=2, length_penalty=2.0, max_new_tokens=3),
            GenerationOptions(num_beams=2, early_stopping=True, length_penalty=-1.0, max_new_tokens=5),
        ],
        [
            GenerationOptions(do_sample=True, top_k=3, seed=1, max_new_tokens=4),
            GenerationOptions(do_sample=True, top_k=3, seed=2, temperature=3.0, max_new_tokens=5),
            GenerationOptions(do_sample=True, top_k=3, seed=3, top_p=0.5, max_new_tokens=3),
        ],
    ],
    ids=["beams", "samples"],
)
def test_every_row_has_its_own_options(
    scene: Scene, pool: ThreadPoolExecutor, options: list[GenerationOptions]
) -> None:
    calls: list[Call] = [(i % 3, "", of_call) for i, of_call in enumerate([options[0], *options])]
    alone = [scene.generate(call) for call in calls]
    scene.slots.clear()
    assert [future.result(WAIT_S) for future in scene.together(calls, pool)] == alone
    assert max(prompts for _, prompts in scene.slots) == len(options)


def test_calls_that_end_early_touch_no_other(scene: Scene, pool: ThreadPoolExecutor) -> None:
    """One is cancelled between steps, one's time runs out, one has numbers that are none."""
    long = GenerationOptions(max_new_tokens=12)
    alone = scene.generate((0, "what color ?", long)), scene.generate((1, "", long))
    scene.slots.clear()
    token, bad = CancelToken(), scene.prefixes[2]
    scene.prefixes[2] = CudaPrefix(bad.keys, torch.full_like(bad.values, torch.nan), bad.engine)
    futures: list[Future[list[list[Generation]]]] = []

    def events(number: int) -> None:
        if number == 0:
            given = [(1, "", long), (0, "", long), (2, "", long)]
            futures.extend(
                pool.submit(scene.generate, call, cancel)
                for call, cancel in zip(given, (None, token, None), strict=True)
            )
            scene.wait_for_calls(4)
        if number == 4:
            token.cancel()

    scene.before_step = events
    first = scene.generate((0, "what color ?", long))
    assert first == alone[0]
    assert futures[0].result(WAIT_S) == alone[1]
    with pytest.raises(CancelledError):
        futures[1].result(WAIT_S)
    with pytest.raises(ValueError, match="logits: NaN in row 0"):
        futures[2].result(WAIT_S)
    scene.before_step = lambda number: None
    with pytest.raises(DeadlineError):
        scene.generate((0, "", long), CancelToken(timeout=0))
    assert scene.generate((1, "", long)) == alone[1]
    assert not scene.engine._running.searches


def test_an_interrupt_ends_the_call_of_its_thread_alone(scene: Scene, pool: ThreadPoolExecutor) -> None:
    """Even of the thread that leads: others begin again."""
    alone = scene.generate((1, "what color ?", GREEDY))
    scene.slots.clear()
    futures: list[Future[list[list[Generation]]]] = []

    def interrupt(number: int) -> None:
        if number == 0:
            futures.append(pool.submit(scene.generate, (1, "what color ?", GREEDY)))
            scene.wait_for_calls(2)
        if number == 3:
            raise KeyboardInterrupt

    scene.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        scene.generate((0, "", replace(GREEDY, max_new_tokens=12)))
    scene.before_step = lambda number: None
    assert futures[0].result(WAIT_S) == alone


@pytest.mark.parametrize("count", [6, slow(12)])
def test_calls_with_more_rows_than_there_is_room_for(
    device: str, count: int, processor: Processor, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    scene = Scene(make_engine(device, shallow=True, rows_at_once=2), processor, monkeypatch)
    texts = ["", "what ?", "how many ?", "what color ?"] * 3
    prompts = [processor.tokenizer.prompt(text) for text in texts[:count]]
    prefixes = [scene.prefixes[i % 3] for i in range(len(prompts))]
    one = scene.generate((0, "", GREEDY))
    options = GenerationOptions(max_new_tokens=3)
    expected = [scene.engine.generate([a], [b], options)[0] for a, b in zip(prefixes, prompts, strict=True)]
    scene.slots.clear()
    futures: list[Future[list[list[Generation]]]] = []

    def let_another_come(number: int) -> None:
        if number == 1:
            futures.append(pool.submit(scene.generate, (0, "", GREEDY)))
            scene.wait_for_calls(2)

    scene.before_step = let_another_come
    assert scene.engine.generate(prefixes, prompts, options) == expected
    assert futures[0].result(WAIT_S) == one
    assert {slots for slots, _ in scene.slots} == {2}


def test_the_lock_goes_round() -> None:
    lock, order, begun = FairLock(), [], threading.Barrier(2)

    def ask(number: int) -> None:
        with lock:
            order.append(number)

    def holder() -> None:
        with lock:
            begun.wait(WAIT_S)
            for number in range(3):
                threads.append(threading.Thread(target=ask, args=(number,)))
                threads[-1].start()
                while len(lock._waiting) <= number:
                    threading.Event().wait(0.001)
        ask(3)

    threads: list[threading.Thread] = []
    first = threading.Thread(target=holder)
    first.start()
    begun.wait(WAIT_S)
    first.join(WAIT_S)
    for thread in threads:
        thread.join(WAIT_S)
    assert order == [0, 1, 2, 3]
