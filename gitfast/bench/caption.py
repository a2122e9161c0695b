"""Time whole captions: pixels on the host in, token ids on the host out, ways side by side.

Every way runs the same weights on the same images, and none may end a text early. Its captions are compared with GIT in
float64 before it is timed. Ways take turns within each round; ratios are taken round by round.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gitfast.bench import floors, memory
from gitfast.bench.captioners import Captioner, Texts, Way
from gitfast.bench.ceilings import Ceilings
from gitfast.bench.shapes import DTYPE_BYTES
from gitfast.bench.spread import Spread, in_turns
from gitfast.bench.workload import Pixels, Workload, random_pixels

PAUSE_S = 0.02  # the threads of the way before stop spinning
MOST_CHECKED = 4  # images in a batch whose captions are compared with float64
CAPTIONS_PER_CLIENT = 2  # in each round


@dataclass(frozen=True)
class Settings:
    """The measurements: every way on so many threads and images at once, and for so many clients of one image each."""

    ways: Sequence[Way]
    device: str
    threads: Sequence[int]
    batches: Sequence[int]
    clients: Sequence[int]
    new_tokens: int
    rounds: int


@dataclass(frozen=True)
class Row:
    """One way on a batch of images. Times are milliseconds; ``speed`` is the time of the first way over this one's."""

    way: str
    threads: int
    batch: int
    encode_ms: Spread
    first_token_ms: Spread  # encode and prefill included
    per_token_ms: Spread
    caption_ms: Spread
    captions_per_s: float
    speed: Spread
    floor_ms: float  # at the measured ceilings
    equal_tokens: int | None  # tokens equal to float64's, up to the first that differs in each caption
    checked_tokens: int | None
    error: float | None  # root mean square difference of log-probabilities from float64
    decoded_by: str | None  # the way of decoding, for a gitfast engine that has several
    multiprocessors: int | None  # that the blocks of the persistent kernel were spread over


@dataclass(frozen=True)
class ClientsRow:
    """One way serving clients, each of which waits for its caption before it asks for the next."""

    way: str
    threads: int
    clients: int
    captions_per_s: Spread
    latency_ms: Spread  # for single captions
    p95_ms: float
    memory_mb: float | None  # per lane, at most, beside the weights: prefixes, text and scratch. None: not known


@dataclass(frozen=True)
class Failure:
    """A way that is not timed, and the reason."""

    way: str
    problem: str


@dataclass
class Report:
    """A run: the machine, and the results so far."""

    device: str
    machine: dict[str, Any]
    model: str
    random_weights: bool
    new_tokens: int
    rounds: int
    ceilings: Ceilings
    not_measured: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    clients: list[ClientsRow] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


Outcome = Row | ClientsRow | Failure


def run(workload: Workload, settings: Settings, report: Report) -> Iterator[list[Outcome]]:
    """Run one comparison after the other; yield each result once it is in ``report``."""
    bench = _Bench(workload, settings, report, _Truth(workload, settings))
    for threads in settings.threads:
        captioners = bench.opened(threads)
        for batch in settings.batches:
            yield bench.time_batch(captioners, threads, batch)
        for clients in settings.clients:
            yield bench.time_clients(captioners, threads, clients)
        captioners.clear()
        bench.kept_bytes.clear()
        gc.collect()  # weights of several gigabytes


class _Truth:
    """GIT's captions in float64 of the first images of a batch. Nothing without torch."""

    def __init__(self, workload: Workload, settings: Settings) -> None:
        way = Way("reference", "float64")
        self._captioner = None if way.missing() else way.open(workload, settings.device, max(settings.threads))
        self._new_tokens = settings.new_tokens
        self._found: dict[int, tuple[Texts, NDArray[np.floating]]] = {}

    def __call__(self, pixels: Pixels) -> tuple[Texts, NDArray[np.floating]] | None:
        """Return the captions, and the log-probabilities of the first one's tokens."""
        if self._captioner is not None and len(pixels) not in self._found:
            first = pixels[:MOST_CHECKED]
            texts = self._captioner.caption(first, self._new_tokens)
            self._found[len(pixels)] = texts, self._captioner.score(first, texts[0])
        return self._found.get(len(pixels))


@dataclass(frozen=True)
class _Bench:
    workload: Workload
    settings: Settings
    report: Report
    truth: _Truth
    kept_bytes: dict[int, int] = field(default_factory=dict)  # by the captioner's id

    def opened(self, threads: int) -> dict[Way, Captioner]:
        """Open the ways that can run here; the report says why others cannot."""
        captioners = {}
        for way in self.settings.ways:
            if package := way.missing():
                self.report.not_measured[way.name] = f"{package} is not installed"
                continue
            try:
                captioners[way] = way.open(self.workload, self.settings.device, threads)
            except Exception as error:
                self._left_out(way, error)
        return captioners

    def _left_out(self, way: Way, error: Exception) -> None:
        """Record a failure: a peer may throw whatever it likes; the others are measured all the same."""
        if way.engine == "gitfast":
            raise error
        self.report.not_measured[way.name] = f"{type(error).__name__}: {error}".split("\n")[0]

    def time_batch(self, captioners: dict[Way, Captioner], threads: int, batch: int) -> list[Outcome]:
        """Time all ways on the same images. One that is wrong is not timed, now or later."""
        pixels = random_pixels(self.workload.config, batch)
        accuracies, failures = {}, []
        for way, captioner in list(captioners.items()):
            try:
                accuracy = accuracies[way] = self._accuracy(captioner, pixels)
            except Exception as error:
                self._left_out(way, error)
                del captioners[way]
                continue
            if (way.engine, way.dtype) == ("gitfast", "float32") and accuracy.equal != accuracy.checked:
                problem = f"{accuracy.equal} of {accuracy.checked} tokens are those of float64, in a batch of {batch}"
                failures.append(Failure(way.name, problem))
                del captioners[way]
        samples = {way: _Samples() for way in captioners}
        for way in in_turns(captioners, self.settings.rounds):
            samples[way].add(captioners[way], pixels, self.settings.new_tokens)
        base = next(iter(samples.values()), None)
        rows = [self._row(way, threads, batch, samples[way], base, accuracies[way], captioners[way]) for way in samples]
        self.report.failed += failures
        self.report.rows += rows
        return [*failures, *rows]

    def _accuracy(self, captioner: Captioner, pixels: Pixels) -> _Accuracy:
        texts = captioner.caption(pixels, self.settings.new_tokens)  # warms up too
        truth = self.truth(pixels)
        if truth is None:
            return _Accuracy(None, None, None)
        expected, scores = truth
        error = captioner.score(pixels, expected[0]) - scores
        equal = equal_tokens(texts[: len(expected)], expected)
        return _Accuracy(equal, sum(map(len, expected)), float(np.sqrt(np.square(error).mean())))

    def _row(
        self,
        way: Way,
        threads: int,
        batch: int,
        samples: _Samples,
        base: _Samples | None,
        accuracy: _Accuracy,
        captioner: Captioner,
    ) -> Row:
        new_tokens = self.settings.new_tokens
        steps = [(c - f) / (new_tokens - 1) for c, f in zip(samples.caption, samples.first, strict=True)]
        caption = Spread.of(samples.caption)
        options = dict(way.options)
        floor = floors.caption(
            self.workload.config,
            batch,
            new_tokens,
            way.dtype,
            self.report.ceilings,
            prefix_dtype=options.get("prefix_dtype"),
            head_bytes=DTYPE_BYTES["int8"] if options.get("head") == "two_stage" else None,
        )
        return Row(
            way=way.name,
            threads=threads,
            batch=batch,
            encode_ms=Spread.of(samples.encode),
            first_token_ms=Spread.of(samples.first),
            per_token_ms=Spread.of(steps),
            caption_ms=caption,
            captions_per_s=batch / caption.median * 1e3,
            speed=Spread.of_ratios((base or samples).caption, samples.caption),
            floor_ms=floor * 1e3,
            equal_tokens=accuracy.equal,
            checked_tokens=accuracy.checked,
            error=accuracy.error,
            decoded_by=getattr(captioner, "decoded_by", None),
            multiprocessors=getattr(captioner, "multiprocessors", None),
        )

    def time_clients(self, captioners: dict[Way, Captioner], threads: int, clients: int) -> list[Outcome]:
        """Time all ways that several threads may call at once."""
        pixels = random_pixels(self.workload.config, 1)
        fit = {way: captioner for way, captioner in captioners.items() if captioner.concurrent or clients == 1}
        for way in captioners.keys() - fit.keys():
            self.report.not_measured[f"{way.name}, {clients} clients"] = "takes one call at a time"
        rates: dict[Way, list[float]] = {way: [] for way in fit}
        latencies: dict[Way, list[float]] = {way: [] for way in fit}
        took_mb = {}
        for way, captioner in fit.items():  # captures and buffers of this many
            serve = partial(_serve, captioner, pixels, clients, self.settings.new_tokens)
            took_mb[way] = self._memory_mb(captioner, memory.growth(serve)[1])
        for way in in_turns(fit, self.settings.rounds):
            time.sleep(PAUSE_S)
            took, seconds = _serve(fit[way], pixels, clients, self.settings.new_tokens)
            rates[way].append(len(seconds) / took)
            latencies[way] += [1e3 * s for s in seconds]
        rows = [
            ClientsRow(
                way=way.name,
                threads=threads,
                clients=clients,
                captions_per_s=Spread.of(rates[way]),
                latency_ms=Spread.of(latencies[way]),
                p95_ms=float(np.quantile(latencies[way], 0.95)),
                memory_mb=took_mb[way],
            )
            for way in fit
        ]
        self.report.clients += rows
        return [*rows]

    def _memory_mb(self, captioner: Captioner, taken: tuple[int, int] | None) -> float | None:
        """Return the most that a lane has taken, what it kept from fewer clients included."""
        if taken is None:
            return None
        most, stayed = taken
        kept = self.kept_bytes.get(id(captioner), 0)
        self.kept_bytes[id(captioner)] = kept + stayed
        return (kept + most) / getattr(captioner, "lanes", 1) / 1e6


@dataclass(frozen=True)
class _Accuracy:
    """Tokens equal to those of float64, and the error of log-probabilities; None without torch."""

    equal: int | None
    checked: int | None
    error: float | None


@dataclass
class _Samples:
    """Milliseconds of each round."""

    encode: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    caption: list[float] = field(default_factory=list)

    def add(self, captioner: Captioner, pixels: Pixels, new_tokens: int) -> None:
        time.sleep(PAUSE_S)
        captioner.caption(pixels, 1)  # its threads are awake then
        self.encode.append(milliseconds(lambda: captioner.encode(pixels)))
        self.first.append(milliseconds(lambda: captioner.caption(pixels, 1)))
        self.caption.append(milliseconds(lambda: captioner.caption(pixels, new_tokens)))


def equal_tokens(texts: Texts, expected: Texts) -> int:
    """Count the tokens before the first difference of each caption: beyond it texts diverge."""
    return sum(
        next((i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b), len(other))
        for text, other in zip(texts, expected, strict=True)
    )


def _serve(captioner: Captioner, pixels: Pixels, clients: int, new_tokens: int) -> tuple[float, list[float]]:
    """Serve clients that begin together; return the seconds of all, and those of each caption."""
    begin = threading.Barrier(clients + 1)

    def client(_: int) -> list[float]:
        begin.wait()
        return [milliseconds(lambda: captioner.caption(pixels, new_tokens)) / 1e3 for _ in range(CAPTIONS_PER_CLIENT)]

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client, i) for i in range(clients)]
        begin.wait()
        start = time.perf_counter()
        seconds = [s for future in futures for s in future.result()]
        return time.perf_counter() - start, seconds


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3
