"""One server for all tests that need nothing configured but its port."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

import gitfast

from support.serving import running


@pytest.fixture(scope="session")
def server():
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with server.client() as found:
        yield found


@pytest.fixture(scope="module")
def model():
    return gitfast.load("git-tiny")
