"""The service inside other programs: as an ASGI application, and the example of one built around a model."""

from __future__ import annotations

import asyncio
import importlib.util

import httpx
import pytest

from gitfast.serve import Settings, create_app

from support.paths import EXAMPLES
from support.serving import SQUARES, assert_error, chat_body

QUESTION = "what color are the squares?"


def call(app, *requests):
    """The responses to (method, path, options), in a loop of their own."""

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", trust_env=False) as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(run())


def test_the_example():
    specification = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    service = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(service)
    image = {"files": {"image": SQUARES.read_bytes()}}
    caption, answers, bad = call(
        service.app,
        ("POST", "/caption", image),
        ("POST", "/ask", image | {"params": {"question": QUESTION}}),
        ("POST", "/caption", {"files": {"image": b"no image"}}),
    )
    assert caption.json() == "five red squares"
    assert answers.json() == {"caption": "five red squares", "answer": "red"}
    assert bad.status_code == 400
    code = [line for line in (EXAMPLES / "service.py").read_text().splitlines() if line.strip()]
    assert len(code) < 30


def test_an_app_of_a_loaded_model(model):
    app = create_app(model, Settings(served_name="eyes", max_images=1))
    ready, models, chat, refused = call(
        app,
        ("GET", "/readyz", {}),
        ("GET", "/v1/models", {}),
        ("POST", "/v1/chat/completions", {"json": chat_body(SQUARES, QUESTION, model="eyes")}),
        ("POST", "/v1/caption", {"files": [("image", SQUARES.read_bytes())] * 2}),
    )
    assert ready.json() == {"status": "ok"}
    assert models.json()["data"][0]["id"] == "eyes"
    assert chat.json()["choices"][0]["message"]["content"] == "red"
    assert_error(refused, 400)


@pytest.mark.parametrize("name", ["max_running", "timeout", "max_body_bytes", "max_images"])
def test_settings_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"{name}: expected a positive number"):
        Settings(**{name: 0})
    with pytest.raises(ValueError, match=name):
        Settings(**{name: -1})


def test_a_queue_may_be_none(model):
    (response,) = call(
        create_app(model, Settings(max_queue=0)), ("POST", "/v1/caption", {"files": {"image": SQUARES.read_bytes()}})
    )
    assert response.json()["results"][0]["text"] == "five red squares"


def test_a_failure_of_the_server_says_nothing(model, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the secret of /etc/shadow")

    monkeypatch.setattr(type(model), "caption", fail)
    app = create_app(model)
    plain, stream = call(
        app,
        ("POST", "/v1/caption", {"files": {"image": SQUARES.read_bytes()}}),
        ("POST", "/v1/chat/completions", {"json": chat_body(n=2, stream=True)}),
    )
    for response in (plain, stream):
        assert "secret" not in assert_error(response, 500, "internal_error")["message"]
    assert "RuntimeError: the secret" in caplog.text


class TestTraces:
    """A request is a trace if OpenTelemetry is installed and set up."""

    @pytest.fixture
    def spans(self, monkeypatch):
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
        return exporter.get_finished_spans

    def test_spans(self, model, spans):
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        call(create_app(model), ("POST", "/v1/chat/completions", {"json": chat_body(), "headers": headers}))
        found = {span.name: span for span in spans()}
        assert set(found) == {"POST /v1/chat/completions", "gitfast.encode", "gitfast.generate"}
        request = found["POST /v1/chat/completions"]
        assert request.attributes["http.response.status_code"] == 200
        assert f"{request.context.trace_id:032x}" == trace_id
        assert {found[f"gitfast.{stage}"].parent.span_id for stage in ("encode", "generate")} == {
            request.context.span_id
        }

    def test_without_the_package(self, model, monkeypatch):
        from gitfast.serve import tracing

        monkeypatch.setattr(tracing, "trace", None)
        (response,) = call(create_app(model), ("POST", "/v1/chat/completions", {"json": chat_body()}))
        assert response.status_code == 200
