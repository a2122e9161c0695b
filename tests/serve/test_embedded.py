"""The service inside other programs: as an ASGI application, and the example of one built around a model."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import threading
import tracemalloc
import weakref

import httpx
import pytest

import gitfast
from gitfast.serve import Settings, create_app
from gitfast.serve.jobs import Jobs
from gitfast.serve.metrics import Metrics

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


async def status_of(app, path: str, kind: str, body: bytes) -> int:
    """Post without a client, which would hold the body, too."""
    sent = []
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        return messages.pop() if messages else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize("stream", [None, False, True])
def test_a_refused_body_is_let_go_at_once(stream):
    """Without waiting for the garbage collector, to which a body of megabytes is one object."""
    app = create_app(gitfast.load("git-tiny", prefix_cache_bytes=1 << 20))
    size = 1_000_000
    path, kind, body = "/v1/caption", "image/png", b"x" * size
    if stream is not None:
        path, kind = "/v1/chat/completions", "application/json"
        body = json.dumps(chat_body(b"x" * size, stream=stream)).encode()

    async def grown() -> int:
        assert await status_of(app, path, kind, body) == 400
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(8):
                assert await status_of(app, path, kind, body) == 400
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()

    assert asyncio.run(grown()) < 3 * size  # the last one may still be there


def test_a_client_that_does_not_read_its_reply_is_given_up(model):
    app = create_app(model, Settings(timeout=0.2))

    async def run() -> None:
        messages = [{"type": "http.request", "body": SQUARES.read_bytes()}]

        async def receive():
            return messages.pop() if messages else await asyncio.sleep(60)

        async def send(_):
            await asyncio.sleep(60)

        headers = [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/v1/caption", "query_string": b"", "headers": headers}
        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert 'gitfast_requests_total{code="499",route="/v1/caption"} 1.0' in app.state.service.metrics.text().decode()


def test_what_waited_is_let_go_when_its_client_leaves():
    """While no thread is free to pass it by."""

    class Body:
        pass

    async def run() -> None:
        jobs, done = Jobs(Settings(max_running=1), Metrics()), threading.Event()
        jobs.submit(lambda _: done.wait())
        try:
            body = Body()
            seen = weakref.ref(body)
            waiting = jobs.submit(lambda _, body=body: body)
            del body
            assert seen() is not None
            waiting.leave()
            await asyncio.sleep(0.01)
            assert seen() is None
        finally:
            done.set()
            await jobs.close()

    asyncio.run(run())


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


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "git-tiny", "messages": [' + b"[]," * 1_000_000 + b"1]}",
        b'{"model": "git-tiny", "messages": [{"role": "user", "content": [' + b"1," * 1_000_000 + b"1]}]}",
        b"{" + b'"x": 1, ' * 500_000 + b'"y": 2}',
    ],
    ids=["lists", "parts", "names"],
)
def test_json_of_many_values_is_refused_unread(model, body, monkeypatch):
    monkeypatch.setattr("gitfast.serve.app.ChatRequest", None)  # nothing is parsed
    chat = ("POST", "/v1/chat/completions", {"content": body, "headers": {"Content-Type": "application/json"}})
    (refused,) = call(create_app(model, Settings()), chat)
    assert "more than 20000 values" in assert_error(refused, 400, "invalid_json")["message"]


def test_texts_are_bounded_together(model):
    app = create_app(model, Settings(served_name="eyes"))
    image, labels = {"image": SQUARES.read_bytes()}, [("label", "x" * 1000)] * 201
    form = [("image", ("a.png", SQUARES.read_bytes()))] + [(name, (None, text)) for name, text in labels]
    long = "word " * 50_000
    answers = call(
        app,
        ("POST", "/v1/classify", {"files": form}),
        ("POST", "/v1/caption", {"files": image, "data": {"prompt": long}}),
        ("POST", "/v1/chat/completions", {"json": chat_body(SQUARES, long, model="eyes")}),
    )
    for answer in answers:
        assert "at most 200000 characters of text" in assert_error(answer, 400)["message"]


def test_names_of_clients_come_back_short(model):
    body = chat_body(SQUARES, model="git-tiny") | {"x" * 1_000_000: 1}
    (refused,) = call(create_app(model, Settings()), ("POST", "/v1/chat/completions", {"json": body}))
    assert_error(refused, 400, "unsupported_parameter")
    assert len(refused.content) < 3000


@pytest.mark.parametrize("query", ["length_penalty=-1e308", "repetition_penalty=1e-300", "length_penalty=nan"])
def test_scores_stay_finite(model, query):
    request = ("POST", f"/v1/caption?num_beams=2&{query}", {"files": {"image": SQUARES.read_bytes()}})
    (refused,) = call(create_app(model, Settings()), request)
    assert assert_error(refused, 400)["param"] == query.partition("=")[0]


def test_a_key_of_other_letters(model):
    app = create_app(model, Settings(api_key="schlüssel"))
    headers = [{"Authorization": f"Bearer {key}".encode()} for key in ("schlüssel", "schlussel")]
    found, refused = call(app, *(("GET", "/v1/models", {"headers": header}) for header in headers))
    assert found.status_code == 200
    assert_error(refused, 401, "invalid_api_key")
