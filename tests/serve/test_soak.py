"""Many requests of every kind, some of them bad, some cut: memory, threads and descriptors stay as they were."""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from support.serving import IMAGES, SQUARES, chat_body, running

CLIENTS = 8
HEADERS = {"Content-Type": "image/png"}
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")


def resources(server) -> dict[str, int]:
    """Resident bytes, threads and open files of the server."""
    pid = server.process.pid
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    resident = int(status["VmRSS"].split()[0]) * 1024
    return {"memory": resident, "threads": int(status["Threads"]), "files": len(os.listdir(f"/proc/{pid}/fd"))}


def new_image(rng: random.Random) -> bytes:
    """An image that the cache has not seen."""
    file = io.BytesIO()
    Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3)).save(file, "PNG")
    return file.getvalue()


def work(server, seed: int, requests: int) -> None:
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(server.client())
        for _ in range(requests):
            kind = rng.randrange(8)
            if kind < 2:
                assert client.post("/v1/caption", content=new_image(rng), headers=HEADERS).status_code == 200
            elif kind == 2:
                assert client.post("/v1/chat/completions", json=chat_body(rng.choice(IMAGES))).status_code == 200
            elif kind == 3:
                response = client.post("/v1/chat/completions", json=chat_body(SQUARES, "what?", stream=True))
                assert response.text.endswith("data: [DONE]\n\n")
            elif kind == 4:
                form = {"label": ["a red square", "a blue circle"]}
                found = client.post("/v1/classify", files={"image": SQUARES.read_bytes()}, data=form)
                assert found.status_code == 200
            elif kind == 5:
                assert client.post("/v1/caption", content=b"no image", headers=HEADERS).status_code == 400
            elif kind == 6:
                assert client.post("/v1/attend", content=new_image(rng), headers=HEADERS).status_code == 200
            else:
                with server.client() as cut, contextlib.suppress(Exception):
                    closer = threading.Timer(rng.random() * 0.02, cut.close)
                    closer.start()
                    try:
                        cut.post("/v1/chat/completions", json=chat_body(new_image(rng), stream=True))
                    finally:
                        closer.join()


def soak(server, requests: int, *, seed: int) -> dict[str, int]:
    """The server's resources after so many requests of several clients, once all have ended."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        for future in [pool.submit(work, server, seed + i, requests // CLIENTS) for i in range(CLIENTS)]:
            future.result()
    server.wait_for("gitfast_running_requests", 0)
    server.wait_for("gitfast_queue_depth", 0)
    return resources(server)


# The cache is full after the first round: it may hold a hundred prefixes of 223 kB.
@pytest.mark.parametrize(
    ("warm_up", "requests", "growth"),
    [
        pytest.param(80, 80, 40_000_000, id="short"),
        pytest.param(800, 2000, 24_000_000, id="long", marks=pytest.mark.slow),
    ],
)
def test_nothing_grows(warm_up, requests, growth):
    # Threads start when they are needed: few enough that half of the clients have started them all.
    with running(["--cache-mb", 10, "--max-running", CLIENTS // 2]) as server:
        before = soak(server, warm_up, seed=0)
        after = soak(server, requests, seed=1000)
        assert after["threads"] <= before["threads"] + 1, (before, after)
        assert after["files"] <= before["files"] + 2, (before, after)
        assert after["memory"] <= before["memory"] + growth, (before, after)
        assert server.metric("gitfast_prefix_cache_bytes") <= 10_000_000
        assert server.metric("gitfast_rejected_total") == 0
        assert server.logs("failed") == []
