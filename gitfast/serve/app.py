"""The ASGI application: the routes and their handling of requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from gitfast import __version__
from gitfast.model import Model
from gitfast.serve import metrics as prometheus
from gitfast.serve import openapi, tracing
from gitfast.serve.body import BodyReader, check_files, check_json, decode_data_uri, read_inputs
from gitfast.serve.chat import Chat, Replies, options_of, parts_of
from gitfast.serve.errors import ApiError, busy, of_validation
from gitfast.serve.fetch import Fetcher
from gitfast.serve.gate import EventStream, Gate, error_response, result_of, unless_left
from gitfast.serve.inference import Inference
from gitfast.serve.jobs import Job, Jobs
from gitfast.serve.page import DOCS, PAGE, Page
from gitfast.serve.schemas import ChatRequest, Health, ModelInfo, ModelList
from gitfast.serve.settings import Settings
from gitfast.serve.tasks import TASKS, Task


@dataclass
class Service:
    """The state that the routes share. ``start`` gives it its model; until then it answers that it is loading."""

    settings: Settings
    metrics: prometheus.Metrics = field(default_factory=prometheus.Metrics)
    model: Model | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.bodies = BodyReader(self.settings)
        self.jobs = Jobs(self.settings, self.metrics)
        self.fetcher = Fetcher(
            hosts=self.settings.url_hosts, max_bytes=self.settings.max_body_bytes, timeout=self.settings.url_timeout
        )

    def start(self, model: Model) -> None:
        self.model = model
        self.metrics.watch_model(model)

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, bodies that are still arriving included; give what was admitted ``seconds`` to end."""
        self.bodies.stop()
        await self.jobs.drain(seconds)

    @property
    def name(self) -> str:
        """The model's name for clients: of a folder, its last part."""
        name = self.settings.served_name
        if name is None and self.model is not None:
            path = PurePath(self.model.name)
            name = path.name if path.is_absolute() or self.model.name.startswith(".") else self.model.name
        return name or "model"

    def ready(self) -> Model:
        """Return the model. Raises ``ApiError``, 503, while it is being loaded."""
        if self.model is None:
            raise busy("the model is being loaded", "loading")
        return self.model

    def inference(self, job: Job[Any], parent: Any) -> Inference:
        return Inference(self.ready(), self.settings, self.metrics, job, parent)


def create_app(model: Model, settings: Settings | None = None) -> FastAPI:
    """Create the service around a loaded model, as an ASGI application.

    Args:
        model: A model from ``gitfast.load``; with ``prefix_cache_bytes``, questions about an image that was seen need
            no second encoding.
        settings: Limits and names; None: the defaults.
    """
    service = Service(settings or Settings())
    service.start(model)
    return build_app(service)


def build_app(service: Service) -> FastAPI:
    """Build the application of a service whose model may come later."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.jobs.close()

    app = FastAPI(
        title="gitfast", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.state.service = service
    app.add_exception_handler(HTTPException, _refuse)
    _add_pages(app, service)
    _add_chat(app, service)
    for task in TASKS:
        _add_task(app, service, task)
    app.openapi = lambda: openapi.schema_of(app)  # type: ignore[method-assign]
    paths = {"/openapi.json", *(route.path for route in app.routes if hasattr(route, "path"))}
    app.add_middleware(
        Gate,
        settings=service.settings,
        bodies=service.bodies,
        jobs=service.jobs,
        metrics=service.metrics,
        paths=paths,
    )
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, None, error.headers)


def _add_pages(app: FastAPI, service: Service) -> None:
    def add_page(path: str, page: Page) -> None:
        async def show() -> Response:
            return Response(page.body, media_type="text/html", headers=page.headers)

        app.add_api_route(path, show, methods=["GET", "HEAD"], include_in_schema=False)

    add_page("/", PAGE)
    add_page("/docs", DOCS)

    @app.get("/healthz", summary="Say that the process lives.", tags=["operation"])
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get(
        "/readyz",
        summary="Say whether requests would be admitted: 200, or 503 while loading or shutting down.",
        tags=["operation"],
        responses={503: {"model": Health}},
    )
    async def readyz() -> Response:
        status = "shutting down" if service.jobs.draining else "loading" if service.model is None else "ok"
        return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)

    @app.get(
        "/metrics",
        summary="Give the counters, for Prometheus.",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **openapi.errors(401)},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": prometheus.CONTENT_TYPE})

    @app.get("/v1/models", summary="Name the model.", tags=["OpenAI"], responses=openapi.errors(401, 503))
    async def models() -> ModelList:
        reads: Literal["clips", "images"] = "clips" if service.ready().config.is_video else "images"
        return ModelList(data=[ModelInfo(id=service.name, created=service.created, reads=reads)])


def _add_chat(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post(
        "/v1/chat/completions",
        summary="Caption images, or answer questions about them.",
        description=ChatRequest.__doc__,
        tags=["OpenAI"],
        openapi_extra=openapi.json_body("ChatRequest"),
        responses=openapi.chat_responses(),
        response_model=None,
    )
    async def chat(http: Request) -> Response:
        model, body = service.ready(), await http.body()
        content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            message = f"expected application/json, got {content_type or 'no content type'}"
            raise ApiError(415, message, code="unsupported_media_type")
        check_json(body)
        try:
            request = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise of_validation(error) from None
        if request.model != service.name:
            message = f"model: this server has {service.name!r}, not the one asked for"
            raise ApiError(404, message, param="model", code="model_not_found")
        parts = parts_of(request, settings, video=model.config.is_video)
        data = [decode_data_uri(url, name) if url[:5].lower() == "data:" else (name, url) for name, url in parts.urls]

        def read() -> list[bytes]:
            files = [item if isinstance(item, bytes) else service.fetcher.fetch(item[1], item[0]) for item in data]
            check_files(files, settings)
            return files

        if all(isinstance(item, bytes) for item in data):
            read()  # an empty one is refused before it waits
        work = Chat(request, parts.questions, options_of(request, parts, settings), read)
        parent, begin = tracing.context(), time.perf_counter()
        job = service.jobs.submit(lambda job: _with_timings(service.inference(job, parent), work.run))
        replies = Replies(service.name, model.processor.tokenizer, logprobs=request.logprobs)
        if not request.stream:
            (results, usage), timings = await result_of(job, http.receive)
            _note(http, timings, [result.text for result in results], parts.questions, settings)
            return JSONResponse(replies.whole(results, usage, timings), headers=_server_timing(timings))
        usage_too = request.stream_options is not None and request.stream_options.include_usage
        return await _stream(service, http, job, replies, begin, include_usage=usage_too)


async def _stream(
    service: Service, http: Request, job: Job[Any], replies: Replies, begin: float, *, include_usage: bool
) -> Response:
    """Wait for the first piece, so that an error before it has a status of its own; then stream."""
    pieces = job.pieces()
    try:
        first = await unless_left(anext(pieces, None), http.receive)
    except BaseException:
        job.leave()
        raise
    service.metrics.first_token_seconds.observe(time.perf_counter() - begin)
    events = replies.stream(job, first, pieces, include_usage=include_usage)
    return EventStream(job, events, timeout=service.settings.timeout + service.settings.body_timeout)


def _with_timings(inference: Inference, work: Any) -> tuple[Any, dict[str, float]]:
    return work(inference), inference.timings


def _add_task(app: FastAPI, service: Service, task: Task) -> None:
    settings = service.settings

    @app.post(
        task.path,
        name=task.name,
        summary=task.summary,
        tags=["gitfast"],
        openapi_extra=openapi.inputs_body(task.options),
        responses={200: {"model": task.reply}, **openapi.errors(400, 401, 408, 413, 415, 503, 504)},
        response_model=None,
    )
    async def run(http: Request) -> Response:
        service.ready()
        inputs = await read_inputs(http, settings)
        work = task.work(inputs, settings)
        parent = tracing.context()
        job = service.jobs.submit(lambda job: _with_timings(service.inference(job, parent), work))
        results, timings = await result_of(job, http.receive)
        _note(http, timings, results, inputs.fields, settings)
        reply = {"model": service.name, "results": results, "timings": timings}
        return JSONResponse(reply, headers=_server_timing(timings))


def _note(http: Request, timings: dict[str, float], reply: Any, asked: Any, settings: Settings) -> None:
    """Note facts for the log."""
    facts = http.scope["state"]["facts"]
    facts["timings"] = timings
    if settings.log_texts:
        facts |= {"asked": asked, "reply": reply}


def _server_timing(timings: dict[str, float]) -> dict[str, str]:
    return {"Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in timings.items())}
