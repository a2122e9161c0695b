"""Captions through a local Ray: a job that is killed and resumed, actors that do not fit, a deployment.

Every wait is bounded, and every cluster is a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from support.paths import EXAMPLES
from support.processes import ENVIRONMENT, PYTHON

pytest.importorskip("ray", reason="needs ray: pip install '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

TIMEOUT_S = 240
START = """
import sys
import ray
from gitfast.integrations.ray import Captioner, caption_files, serve_app
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, "-c", START + textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=ENVIRONMENT | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        stop(process)
        pytest.fail("Ray did not end in time")
    assert process.returncode == 0, err[-3000:]
    return out


def stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def rows(folder: Path) -> list[dict]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [row for file in folder.glob("*.parquet") for row in parquet.read_table(file).to_pylist()]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """299 pictures, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sources = sorted((EXAMPLES / "images").glob("*.png"))
    for i in range(299):
        shutil.copy(sources[i % len(sources)], folder / f"{i:03}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_a_killed_job_is_resumed_to_every_row_once(pictures, tmp_path):
    job = "caption_files(sys.argv[1], sys.argv[2], num_actors=2, batch_size=8, checkpoint=sys.argv[3])"
    output, checkpoint = tmp_path / "output", tmp_path / "checkpoint"
    first = start(job, pictures, output, checkpoint)
    end = time.monotonic() + TIMEOUT_S
    while not list(output.glob("*.parquet")) and first.poll() is None:
        assert time.monotonic() < end, "nothing was written in time"
        time.sleep(0.1)
    stop(first)
    finish(start(job, pictures, output, checkpoint))
    found = rows(output)
    assert len(found) == 300
    assert len({row["path"] for row in found}) == 300
    (bad,) = [row for row in found if row["error"]]
    assert bad["path"].endswith("bad.png")
    assert bad["path"] in bad["error"]
    assert bad["text"] == ""
    cross = next(row for row in found if row["path"].endswith("000.png"))
    assert cross["text"] == "a green cross to the left of a red triangle"


def test_a_deployment_answers_and_refuses():
    program = """
        import socket, urllib.error, urllib.parse, urllib.request
        from pathlib import Path
        from ray import serve
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve_app(max_batch_size=4))
        def post(body, query=""):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{query}", data=body, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
        image = Path(sys.argv[1]).read_bytes()
        print(*post(image))
        print(*post(image, "?question=" + urllib.parse.quote("how many squares are there?")))
        print(*post(b"no picture"))
        serve.shutdown()
        """
    said = finish(start(program, EXAMPLES / "images" / "five-red-squares.png"))
    caption, answer, refusal = (line for line in said.splitlines() if line.startswith(("200 ", "400 ")))
    assert caption.startswith('200 {"text":"five red squares"')
    assert answer.startswith('200 {"text":"five"')
    assert refusal.startswith("400 ")
    assert "not an image" in refusal


def test_actors_that_leave_nothing_to_read_with_are_refused():
    program = """
        for arguments in ({"num_actors": 4}, {"cpus_per_actor": 4}, {"num_actors": 3, "checkpoint": "/nowhere"},
                          {"num_actors": 0}, {"gpus_per_actor": 1}, {"file_format": "csv"}):
            try:
                caption_files("/nowhere", "/nowhere", **arguments)
            except ValueError as error:
                print(error)
        """
    lines = finish(start(program)).splitlines()
    assert lines[-6:] == [
        "num_actors: 4 of 1 CPUs take 4, and reading takes 1 more; the cluster has 4",
        "num_actors: 1 of 4 CPUs take 4, and reading takes 1 more; the cluster has 4",
        "num_actors: 3 of 1 CPUs take 3, and reading and the checkpoint take 2 more; the cluster has 4",
        "num_actors: expected at least 1, got 0",
        "gpus_per_actor: 1 in all; the cluster has 0",
        "file_format: expected 'parquet' or 'json', got 'csv'",
    ]


def test_actors_take_the_threads_they_were_assigned():
    program = """
        print(ray.get(ray.remote(num_cpus=2)(lambda: Captioner().model.engine.num_threads).remote()))
        """
    assert finish(start(program)).splitlines()[-1] == "2"
