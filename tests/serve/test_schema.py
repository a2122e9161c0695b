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
TASKS = ["caption", "answer", "classify", "score", "attend", "chat/completions"]
ROUTES = [*(f"/v1/{task}" for task in [*TASKS, "models"]), "/healthz", "/readyz", "/metrics"]


def as_texts(case: schemathesis.Case) -> bool:
    """Say whether a form has fields of other types than text: sent as texts, they may be right."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return False
    values = [part for value in case.body.values() for part in (value if isinstance(value, list) else [value])]
    return any(not isinstance(value, str | bytes) for value in values)


@pytest.fixture(scope="module")
def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.path: found for found in (result.ok() for result in schema.get_all_operations())}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
def test_every_route(operations, route, mode, examples):
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operations[route].as_strategy(generation_mode=mode))
    def run(case):
        unsuitable = [*UNSUITABLE, schemathesis.checks.negative_data_rejection] if as_texts(case) else UNSUITABLE
        case.call_and_validate(excluded_checks=unsuitable)

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing about it can be wrong
        run()


def test_nothing_failed(server):
    assert server.logs("failed") == []


def test_the_document(client):
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert set(ROUTES) == set(paths)
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
