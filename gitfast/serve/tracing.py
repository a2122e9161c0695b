"""OpenTelemetry spans, where its package is installed; nothing otherwise.

The process sets up the export of spans, by ``opentelemetry-instrument`` or its own code: without an SDK the API's
spans cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = propagate = None  # type: ignore[assignment]


@contextmanager
def server_span(name: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open the span of one request, a child of the one that the client names in ``traceparent``."""
    if trace is None:
        yield None
        return
    context = propagate.extract(dict(headers))
    with trace.get_tracer("gitfast").start_as_current_span(name, context, kind=trace.SpanKind.SERVER) as span:
        yield span


def context() -> Any:
    """Return the current span's context, for ``child_span`` in another thread."""
    return None if trace is None else trace.get_current_span().get_span_context()


@contextmanager
def child_span(name: str, parent: Any, **attributes: Any) -> Iterator[None]:
    """Open a span inside ``parent``, a result of ``context``."""
    if trace is None or parent is None:
        yield
        return
    within = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    with trace.get_tracer("gitfast").start_as_current_span(name, within, attributes=attributes):
        yield
