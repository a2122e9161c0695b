"""The OpenAPI document, tested by schemathesis: no request gets an answer that is not in it."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies

from support.serving import IMAGES, SQUARES, data_uri

# Half of the images are images.
PICTURES = [image.read_bytes() for image in IMAGES]
schemathesis.openapi.media_type("image/*", strategies.sampled_from([*PICTURES, b"", b"no image", PICTURES[0][:300]]))
schemathesis.openapi.format("binary", strategies.sampled_from([*PICTURES, b"no image"]))

# A picture cannot be told from bytes by a schema, so that what it allows may be refused, with 400.
UNSUITABLE = [schemathesis.checks.positive_data_acceptance]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
def test_every_route(operations, mode, examples):
    assert len(operations) == 10
    for operation in operations:

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def run(case):
            case.call_and_validate(excluded_checks=UNSUITABLE)

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing about it can be wrong
            run()


def test_nothing_failed(server):
    assert server.logs("failed") == []


def test_the_document(client):
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    tasks = ["caption", "answer", "classify", "score", "attend", "chat/completions", "models"]
    assert {f"/v1/{task}" for task in tasks} | {"/healthz", "/readyz", "/metrics"} == set(paths)
    for path, methods in paths.items():
        for method, route in methods.items():
            assert route["summary"].endswith("."), path
            if method == "post":
                assert {"200", "400", "401", "408", "413", "415", "503", "504"} <= set(route["responses"])
                assert "422" not in route["responses"]


def test_an_example_of_the_document(client):
    """The names in it are those that the server takes."""
    document = client.get("/openapi.json").json()
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    body = {"model": "git-tiny", "messages": [{"role": "user", "content": []}], "n": 1, "max_tokens": 5, "seed": 0}
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": data_uri(SQUARES)}})
    assert set(body) <= set(chat)
    assert client.post("/v1/chat/completions", json=body).status_code == 200
