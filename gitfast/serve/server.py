"""The process: binds, loads the model while it already answers, serves, and drains at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import uvicorn

from gitfast.errors import EngineError
from gitfast.model import Model
from gitfast.serve import logs
from gitfast.serve.app import Service, build_app
from gitfast.serve.jobs import tell
from gitfast.serve.protocol import BoundedProtocol
from gitfast.serve.settings import Settings
from gitfast.standard_streams import flush_or_discard

_CLOSE_S = 5.0  # seconds for connections to end once their requests have


def serve(load: Callable[[], Model], settings: Settings, *, host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Args:
        load: Gives the model; runs in a thread, while ``/healthz`` already answers.
        settings: Limits.
        host, port: The address to listen on; port 0 takes a free one, which the first line on stdout names.

    Raises:
        EngineError: the address is not to be had.
        GitfastError, ValueError: the errors of ``load``.
    """
    with _listen(host, port) as listener:
        logs.configure()
        return _Process(load, settings, listener).run()


class _Process:
    def __init__(self, load: Callable[[], Model], settings: Settings, listener: socket.socket) -> None:
        self._load, self._settings, self._listener = load, settings, listener
        self._service = Service(settings)
        config = uvicorn.Config(
            build_app(self._service),
            http=cast(Any, functools.partial(BoundedProtocol, head_timeout=settings.body_timeout)),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            proxy_headers=False,
            timeout_graceful_shutdown=int(settings.drain + 2 * _CLOSE_S),  # after ``_drain``
        )
        self._server = _Server(config, self._stop)
        self._failure: BaseException | None = None
        self._signal: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> int:
        self._server.on_started = self._started
        self._server.run(sockets=[self._listener])
        if self._failure is not None:
            raise self._failure
        logs.log("stopped")
        return 130 if self._signal == signal.SIGINT else 0

    def _started(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load_model, args=(loop,), name="gitfast-load", daemon=True).start()

    def _load_model(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            model = self._load()
            warm(model)
        except BaseException as error:
            self._failure = error
            self._server.should_exit = True
            return
        tell(loop, self._ready, model)

    def _ready(self, model: Model) -> None:
        if self._signal is not None:  # it came while the model was loaded: nobody is to be served any more
            return
        self._service.start(model)
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            print(f"gitfast: {self._service.name} on {url}", flush=True)
        except OSError:  # nobody need read it: the log says so, too
            flush_or_discard(sys.stdout)
        logs.log("ready", model=self._service.name, url=url, engine=model.engine.name)

    def _stop(self, number: int) -> None:
        """Stop. First signal: admit nothing more, and end when the admitted requests have. Second: end now."""
        if self._signal is not None:
            logs.silence_libraries()  # which would log the traceback of every request that is cut off
            self._server.force_exit = True
            return
        self._signal = number
        logs.log("draining", signal=signal.Signals(number).name, seconds=self._settings.drain)
        task = asyncio.get_running_loop().create_task(self._drain())
        self._tasks.add(task)
        self._server.should_exit = True

    async def _drain(self) -> None:
        await self._service.drain(self._settings.drain)
        await asyncio.sleep(_CLOSE_S)
        for connection in list(self._server.server_state.connections):  # whose clients do not read their answers
            connection.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without its own way with signals, which raises SIGTERM again at the end."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self.on_started: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self._on_signal, number)
            except NotImplementedError:  # the loop of Windows
                signal.signal(number, lambda received, _: loop.call_soon_threadsafe(self._on_signal, received))
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()


def warm(model: Model) -> None:
    """Caption a blank input, so that the first client pays for nothing that is made on first use."""
    edge = model.config.vision_config.image_size
    blank: Any = np.zeros((edge, edge, 3), np.uint8)
    if model.config.is_video:
        blank = np.zeros((model.config.num_image_with_embedding or 1, edge, edge, 3), np.uint8)
    model.caption(model.encode(blank), max_new_tokens=2)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # until then SO_REUSEADDR lets another process bind the same port
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{host}, port {port}: cannot listen there: {reason}") from None
    return listener
