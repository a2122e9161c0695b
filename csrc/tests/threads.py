"""Threads that share one model, for the sanitizers: csrc/tests/run.sh python

Captions, streams, prefixes, scores, running batches and cancelled calls at once; what is right is what one thread gets.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import gitfast
from gitfast import _C, ops
from gitfast.errors import CancelledError, DeadlineError
from gitfast.types import GenerationOptions

from support.fuzz import call_targets
from support.fuzz.loop import fuzz

THREADS = 6
ROUNDS = 3
FUZZED = {"ops": call_targets.kernels, "search": call_targets.search}
EXECUTIONS = 500


class Scenario:
    """One model, its pictures, and what a single thread makes of them."""

    def __init__(self) -> None:
        # A cache of a few prefixes, so that they come and go; lanes, so that threads of the engine run side by side.
        self.model = gitfast.load("git-tiny", num_threads=2, num_lanes=2, prefix_cache_bytes=200_000)
        rng = np.random.default_rng(0)
        self.pictures = [
            np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((20, 20, 1), np.uint8)) for _ in range(6)
        ]
        self.captions = [self.model.caption(picture).text for picture in self.pictures]
        self.beams = [self.model.caption(picture, num_beams=3).text for picture in self.pictures]
        self.scores = [self.model.score(picture, ["a red square", "no"])[0] for picture in self.pictures]
        self.weight = ops.PackedWeight(rng.standard_normal((70, 33), np.float32), dtype="int8")
        self.x = rng.standard_normal((9, 33), np.float32)
        self.pool = ops.ThreadPool(2)
        self.product = ops.linear(self.x, self.weight)

    def caption(self, index: int) -> None:
        assert self.model.caption(self.pictures[index]).text == self.captions[index]

    def beam(self, index: int) -> None:
        many = [index, (index + 1) % len(self.pictures)]
        results = self.model.caption([self.pictures[i] for i in many], num_beams=3)
        assert [result.text for result in results] == [self.beams[i] for i in many]

    def stream(self, index: int) -> None:
        assert "".join(self.model.stream(self.pictures[index])) == self.captions[index]

    def left(self, index: int) -> None:
        """A stream that nobody reads to its end."""
        next(iter(self.model.stream(self.pictures[index])))

    def prefix(self, index: int) -> None:
        prefix = self.model.encode(self.pictures[index])
        assert self.model.caption(prefix).text == self.captions[index]

    def score(self, index: int) -> None:
        found = self.model.score(self.pictures[index], ["a red square", "no"])[0]
        assert abs(found - self.scores[index]) < 1e-4

    def cancel(self, index: int) -> None:
        token = gitfast.CancelToken()
        timer = threading.Timer(random.random() * 0.01, token.cancel)
        timer.start()
        try:
            text = self.model.caption(self.pictures[index], cancel=token).text
            assert text == self.captions[index]
        except CancelledError:
            pass
        timer.join()

    def late(self, index: int) -> None:
        with contextlib.suppress(DeadlineError):
            self.model.caption([self.pictures[index]] * 4, cancel=gitfast.CancelToken(timeout=0.002))

    def fail(self, index: int) -> None:
        def raises(row: int, tokens: object) -> None:
            raise ZeroDivisionError

        prefix = self.model.encode(self.pictures[index])
        options = GenerationOptions(max_new_tokens=4)
        try:
            self.model.engine.generate([prefix], [[self.model.processor.tokenizer.cls_id]], options, on_token=raises)
        except ZeroDivisionError:
            return
        raise AssertionError("a callback's error was lost")

    def decode(self, index: int) -> None:
        decoding = self.model.engine.decoding()
        prefix = self.model.encode(self.pictures[index])
        first = decoding.add(prefix, [self.model.processor.tokenizer.cls_id], GenerationOptions(max_new_tokens=6))
        decoding.add(prefix, [self.model.processor.tokenizer.cls_id], GenerationOptions(max_new_tokens=6))
        decoding.step()
        decoding.cancel(first)
        while len(decoding):
            decoding.step()

    def product_of_ops(self, index: int) -> None:
        assert np.array_equal(ops.linear(self.x, self.weight, pool=self.pool), self.product)

    def attend(self, index: int) -> None:
        self.model.attend(self.pictures[index], "a red square")


def main() -> int:
    scenario = Scenario()
    calls = [getattr(scenario, name) for name, value in vars(Scenario).items() if callable(value) and name[0] != "_"]

    def work(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(ROUNDS):
            for call in rng.sample(calls, len(calls)):
                call(rng.randrange(len(scenario.pictures)))
        return ROUNDS * len(calls)

    with ThreadPoolExecutor(THREADS) as threads:
        done = sum(threads.map(work, range(THREADS)))
    print(f"{done} calls of {THREADS} threads", flush=True)
    for name, make in FUZZED.items():
        print(f"{name}: {fuzz(make(Path()), executions=EXECUTIONS).line()}", flush=True)
    return 0


if __name__ == "__main__":
    assert Path(_C.__file__).resolve().parent.name.startswith("native-python"), "not the extension that was built"
    sys.exit(main())
