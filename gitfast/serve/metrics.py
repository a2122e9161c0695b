"""Prometheus metrics of the server and of the engine's work, served at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gitfast.model import Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def histogram(name: str, help: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, help, labels, buckets=_SECONDS, registry=registry)

        self.requests = Counter("gitfast_requests", "Requests answered.", ("route", "code"), registry=registry)
        self.request_seconds = histogram("gitfast_request_seconds", "From a request's head to its end.", ("route",))
        self.first_token_seconds = histogram("gitfast_first_token_seconds", "From admission to the first text.")
        self.queue_seconds = histogram("gitfast_queue_seconds", "From admission to the thread that does the work.")
        self.encode_seconds = histogram("gitfast_encode_seconds", "Reading and encoding the images of a request.")
        self.generate_seconds = histogram("gitfast_generate_seconds", "Generating or scoring the texts of a request.")
        self.tokens = Counter("gitfast_generated_tokens", "Tokens generated.", registry=registry)
        self.images = Counter("gitfast_images", "Images and clips received.", registry=registry)
        self.cancelled = Counter("gitfast_cancelled", "Requests whose client left before the end.", registry=registry)
        self.rejected = Counter("gitfast_rejected", "Requests refused, by error code.", ("reason",), registry=registry)
        self._running = Gauge("gitfast_running_requests", "Requests at work.", registry=registry)
        self._waiting = Gauge("gitfast_queue_depth", "Requests admitted that wait for a thread.", registry=registry)

    def watch_jobs(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def watch_model(self, model: Model) -> None:
        """Read the engine's own counters whenever the metrics are read."""
        self.registry.register(_EngineCollector(model))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """A collector of the counters that an engine keeps; those it does not keep are left out."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def collect(self) -> Iterator[Metric]:
        engine: Any = self._model.engine
        stats = getattr(engine, "stats", None)  # for engines that count their work
        for name, help in (
            ("encoded_images", "Images and clips encoded."),
            ("prefill_tokens", "Prompt tokens run."),
            ("decode_steps", "Steps decoded; each serves all rows at work."),
            ("decode_rows", "Rows of those steps; over the steps, how many share one."),
            ("encode_seconds", "Time spent encoding."),
            ("step_seconds", "Time spent in steps."),
        ):
            if (value := getattr(stats, name, None)) is not None:
                yield CounterMetricFamily(f"gitfast_engine_{name}", help, value=value)
        cache = getattr(engine, "cache_stats", None)
        if cache is not None:
            yield CounterMetricFamily("gitfast_prefix_cache_hits", "Images found in the cache.", value=cache.hits)
            yield CounterMetricFamily("gitfast_prefix_cache_misses", "Images encoded.", value=cache.misses)
            yield CounterMetricFamily("gitfast_prefix_cache_evictions", "Prefixes let go.", value=cache.evictions)
            yield GaugeMetricFamily("gitfast_prefix_cache_bytes", "Bytes held by prefixes.", value=cache.nbytes)
            yield GaugeMetricFamily("gitfast_prefix_cache_entries", "Prefixes held.", value=cache.prefixes)
