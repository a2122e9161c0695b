"""The files in deploy/ refer only to things that exist."""

from __future__ import annotations

import json
import re

from support.paths import EXAMPLES
from support.serving import SQUARES, chat_body

ROOT = EXAMPLES.parent
DEPLOY = ROOT / "deploy"


def test_the_dashboard_shows_metrics_that_there_are(client):
    client.post("/v1/chat/completions", json=chat_body(stream=True))
    client.post("/v1/caption", content=SQUARES.read_bytes(), headers={"Content-Type": "image/png"})
    text = client.get("/metrics").text
    known = set(re.findall(r"^(gitfast_\w+)", text, re.MULTILINE))
    known |= set(re.findall(r"^# TYPE (gitfast_\w+)", text, re.MULTILINE))  # counted once it happens
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked = set(re.findall(r"gitfast_\w+", queries))
    assert len(asked) > 15
    assert asked <= known, asked - known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_image_is_made_of_files_that_there_are():
    kept = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert {"gitfast", "csrc", "models", "setup.py", "pyproject.toml"} <= set(kept)
    for name in kept:
        assert (ROOT / name).exists(), name


def test_the_image_is_not_root_and_is_watched():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER gitfast" in last
    assert any(line.startswith("HEALTHCHECK ") for line in last)
    entry = next(line for line in last if line.startswith("ENTRYPOINT "))
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[:2] == ["gitfast", "serve"]
