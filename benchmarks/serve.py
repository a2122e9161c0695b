"""Time the server under load: closed loops of clients, open loops at a rate, beside direct calls and transformers.

    python benchmarks/serve.py [--shape git-base] [--seconds 20] [--threads N] [--clients 1 4 8 16] [--json FILE]
        [--plot FILE] [--peers server direct transformers]

All run the same random weights, whose captions never end early, on pictures that differ, so that no cache helps:

- server: ``gitfast serve`` in a process of its own, clients on loopback, captions as streams.
- direct: ``model.stream`` from as many threads, in a process of its own.
- transformers: its documented use behind a route, one request at a time, in a process of its own.

A closed loop keeps so many clients busy: each sends its next request when it has its answer. An open loop sends at
random moments, at a share of the ceiling, which is the most that a closed loop of the server reached. Loops of one
size are run by all peers before the next size, so that noise meets all alike; p50 and p99 are of whole requests,
"first" is the median time to the first piece of text.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from safetensors.numpy import save_file

import gitfast
from gitfast.bench.machine import machine_facts
from gitfast.bench.report import check_writable
from gitfast.checkpoints.checkpoint import expected_tensors
from gitfast.checkpoints.config import GitConfig
from gitfast.inputs.image import ImageProcessor

PEERS = ("server", "direct", "transformers")
SHAPES: dict[str, dict[str, Any]] = {
    "git-base": {},
    "tiny": {  # for tests
        "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "image_size": 32, "patch_size": 16},
        "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip
SHARES = (0.5, 0.8, 1.0, 3.0)  # of the ceiling, of open loops
NEVER = -1e4  # bias of the end of a text


@dataclass(frozen=True)
class Answer:
    """The outcome of one request: its status (0 if the connection failed), seconds to the first text and to the end."""

    status: int
    first: float
    whole: float


@dataclass(frozen=True)
class Row:
    """One loop of one peer."""

    peer: str
    loop: str  # "closed" or "open"
    load: float  # clients, or requests per second
    per_second: float
    p50: float
    p99: float
    first: float
    answered: int
    refused: int  # with 503
    lost: int  # with anything else


def summarize(peer: str, loop: str, load: float, answers: Sequence[Answer], seconds: float) -> Row:
    done = [answer for answer in answers if answer.status == 200]
    whole = np.array([answer.whole for answer in done] or [math.nan])
    first = np.array([answer.first for answer in done] or [math.nan])
    refused = sum(answer.status == 503 for answer in answers)
    return Row(
        peer=peer,
        loop=loop,
        load=load,
        per_second=len(done) / seconds,
        p50=float(np.quantile(whole, 0.5)),
        p99=float(np.quantile(whole, 0.99)),
        first=float(np.median(first)),
        answered=len(done),
        refused=refused,
        lost=len(answers) - len(done) - refused,
    )


def write_checkpoint(folder: Path, shape: str) -> None:
    """Write random weights in the layout of Hugging Face, with a vocabulary in which every token is a word."""
    config = GitConfig.from_dict(SHAPES[shape])
    rng = np.random.default_rng(0)
    weights = {}
    for name, size in expected_tensors(config).items():
        if "norm" in name.lower() and name.endswith("weight"):
            weights[name] = np.ones(size, np.float16)
        else:
            weights[name] = (0.02 * rng.standard_normal(size, dtype=np.float32)).astype(np.float16)
    weights["output.bias"][config.eos_token_id] = NEVER
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    settings = ImageProcessor.for_config(config).to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"word{i}" for i in range(config.vocab_size - len(special)))]  # every token is text
    (folder / "vocab.txt").write_text("\n".join(words))


def picture(number: int) -> bytes:
    """Return a JPEG of 640 x 480, about 75 kB, different from the 63 before it."""
    return _picture(number % 64)


@cache
def _picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass
class Peer:
    """A side that is asked for captions; ``closed`` runs a closed loop of clients for some seconds."""

    name: str
    url: str = ""
    closed: Callable[[int, float], list[Answer]] = field(default=lambda clients, seconds: [])


def over_http(url: str, arguments: argparse.Namespace) -> Callable[[int, float], list[Answer]]:
    return lambda clients, seconds: asyncio.run(closed_loop(url, clients, seconds, arguments))


@contextmanager
def server_peer(folder: Path, arguments: argparse.Namespace) -> Iterator[Peer]:
    command = [sys.executable, "-m", "gitfast", "serve", "--model", str(folder), "--port", "0", "--cache-mb", "0"]
    command += ["--served-name", "bench", "--dtype", arguments.dtype]
    command += ["--max-running", str(arguments.running), "--max-queue", str(arguments.queue)]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " on http" not in line:
            raise SystemExit("gitfast serve did not start")
        url = line.split(" on ")[1].strip()
        try:
            yield Peer(
                "server", url, lambda clients, seconds: asyncio.run(closed_loop(url, clients, seconds, arguments))
            )
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def direct_peer(folder: Path, arguments: argparse.Namespace) -> Iterator[Peer]:
    with child(_direct, folder, arguments) as pipe:

        def closed(clients: int, seconds: float) -> list[Answer]:
            pipe.send((clients, seconds))
            return pipe.recv()

        yield Peer("direct", closed=closed)


@contextmanager
def transformers_peer(folder: Path, arguments: argparse.Namespace) -> Iterator[Peer]:
    with child(_transformers, folder, arguments) as pipe:
        url = pipe.recv()
        yield Peer(
            "transformers", url, lambda clients, seconds: asyncio.run(closed_loop(url, clients, seconds, arguments))
        )


@contextmanager
def child(work: Callable[..., None], folder: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Run ``work(pipe, folder, arguments)`` in a process until the context ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, folder, arguments), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def _direct(pipe: Any, folder: Path, arguments: argparse.Namespace) -> None:
    """Answer each (clients, seconds) with the measurements of that many threads."""
    model = gitfast.load(folder, dtype=arguments.dtype, num_threads=arguments.threads)
    "".join(model.stream(picture(0), max_new_tokens=2))
    while True:
        clients, seconds = pipe.recv()
        answers: list[Answer] = []
        end = time.perf_counter() + seconds

        def loop(client: int, end: float = end, answers: list[Answer] = answers) -> None:
            number = client * 1_000_000
            while time.perf_counter() < end:
                image = picture(number := number + 1)
                begin = time.perf_counter()
                pieces = model.stream(image, max_new_tokens=arguments.tokens)
                first = 0.0
                for _ in pieces:
                    first = first or time.perf_counter() - begin
                answers.append(Answer(200, first, time.perf_counter() - begin))

        threads = [threading.Thread(target=loop, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send(answers)


def _transformers(pipe: Any, folder: Path, arguments: argparse.Namespace) -> None:
    """Serve the same route as transformers' documentation would: one request at a time, no stream."""
    import torch
    import transformers

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = transformers.GitForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype)).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    lock = threading.Lock()
    app = FastAPI()

    def run(url: str) -> None:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        pixels = processor(images=image, return_tensors="pt").pixel_values.to(model.dtype)
        with lock, torch.inference_mode():
            model.generate(pixel_values=pixels, max_new_tokens=arguments.tokens, do_sample=False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, bool]:
        content = (await request.json())["messages"][0]["content"]
        await asyncio.to_thread(run, content[0]["image_url"]["url"])
        return {"done": True}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


async def ask(client: httpx.AsyncClient, number: int, arguments: argparse.Namespace) -> Answer:
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture(number)).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    body = {"model": "bench", "messages": [{"role": "user", "content": content}], "stream": True}
    data = json.dumps(body | {"max_tokens": arguments.tokens}).encode()
    begin, first = time.perf_counter(), 0.0
    try:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", "/v1/chat/completions", content=data, headers=headers) as response:
            async for _ in response.aiter_raw():
                first = first or time.perf_counter() - begin
            return Answer(response.status_code, first, time.perf_counter() - begin)
    except httpx.HTTPError:
        return Answer(0, 0.0, time.perf_counter() - begin)


def connect(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False, verify=False)


async def closed_loop(url: str, clients: int, seconds: float, arguments: argparse.Namespace) -> list[Answer]:
    answers: list[Answer] = []
    async with connect(url) as client:
        end = time.perf_counter() + seconds

        async def loop(number: int) -> None:
            while time.perf_counter() < end:
                answers.append(await ask(client, number := number + 1, arguments))

        await asyncio.gather(*(loop(i * 1_000_000) for i in range(clients)))
    return answers


async def open_loop(url: str, rate: float, seconds: float, arguments: argparse.Namespace) -> list[Answer]:
    rng = random.Random(0)
    async with connect(url) as client:
        asked: list[Awaitable[Answer]] = []
        begin, moment = time.perf_counter(), 0.0
        while (moment := moment + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
            asked.append(asyncio.ensure_future(ask(client, len(asked) + 10**9, arguments)))
        return list(await asyncio.gather(*asked))


def timed(peer: str, loop: str, load: float, run: Callable[[], list[Answer]]) -> Row:
    begin = time.perf_counter()
    answers = run()
    return summarize(peer, loop, load, answers, time.perf_counter() - begin)


def measure(peers: Sequence[Peer], arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(line_of(row), flush=True)

    for peer in peers:
        peer.closed(1, 1.0)  # warm
    print(f"{'':<14}{'load':>14}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}{'first ms':>10}{'refused':>9}{'lost':>6}")
    for clients in arguments.clients:
        for peer in peers:
            add(timed(peer.name, "closed", clients, partial(peer.closed, clients, arguments.seconds)))
    server = next((peer for peer in peers if peer.name == "server"), None)
    if server is not None:
        ceiling = max(row.per_second for row in rows if row.peer == "server")
        for share in arguments.shares:
            rate = share * ceiling

            def run(rate: float = rate) -> list[Answer]:
                return asyncio.run(open_loop(server.url, rate, arguments.seconds, arguments))

            add(timed("server", "open", rate, run))
    return rows


def line_of(row: Row) -> str:
    load = f"{row.load:g} clients" if row.loop == "closed" else f"{row.load:.2f} / s"
    numbers = f"{row.per_second:>12.2f}{row.p50 * 1e3:>9.0f}{row.p99 * 1e3:>9.0f}{row.first * 1e3:>10.0f}"
    return f"{row.peer:<14}{load:>14}{numbers}{row.refused:>9}{row.lost:>6}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw throughput and the time to the first text over the number of clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    colors = {"server": "#c2410c", "direct": "#57534e", "transformers": "#a8a29e"}
    plots = (("per_second", 1, "captions per second"), ("p50", 1e3, "median, ms"), ("first", 1e3, "first text, ms"))
    for axis, (key, scale, label) in zip(axes, plots, strict=True):
        for peer in result["settings"]["peers"]:
            rows = [row for row in result["rows"] if row["peer"] == peer and row["loop"] == "closed"]
            axis.plot(
                [row["load"] for row in rows], [scale * row[key] for row in rows], "o-", color=colors[peer], label=peer
            )
        axis.set(xlabel="clients", ylim=(0, None), title=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(
        f"{result['settings']['shape']}, {result['settings']['dtype']}, {result['machine']['cpu']}", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="git-base", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=20, help="of each caption")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each loop")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="of the ceiling, of open loops")
    parser.add_argument("--threads", type=int, help="of each peer")
    parser.add_argument("--running", type=int, default=16, help="requests at work at the server")
    parser.add_argument("--queue", type=int, default=16, help="requests that wait at the server")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(argv)
    for name in ("json", "plot"):
        if path := getattr(arguments, name):
            check_writable(name, path)
    makers = {"server": server_peer, "direct": direct_peer, "transformers": transformers_peer}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_checkpoint(folder, arguments.shape)
        peers = [stack.enter_context(makers[name](folder, arguments)) for name in arguments.peers]
        rows = measure(peers, arguments)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "plot")}
    result = {"settings": settings, "machine": machine_facts(), "rows": [asdict(row) for row in rows]}
    result["machine"]["load_average"] = os.getloadavg()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        draw(result, arguments.plot)
    return rows


if __name__ == "__main__":
    main()
