"""Streams of tokens: order, early close, and errors."""

from __future__ import annotations

import threading

import pytest

from gitfast.pipeline.streaming import stream_tokens


def running() -> bool:
    return any(thread.name == "gitfast-stream" for thread in threading.enumerate())


def test_tokens_come_before_the_end_and_the_result_after():
    go_on = threading.Event()

    def generate(on_token):
        on_token(0, [1])
        go_on.wait(10)
        on_token(0, [2, 3])
        return "done"

    stream = stream_tokens(generate)
    assert next(stream) == [1]
    go_on.set()
    assert next(stream) == [2, 3]
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == "done"
    assert not running()


def test_closing_stops_within_one_token():
    answers = []

    def generate(on_token):
        while True:
            answers.append(on_token(0, [1]))
            if not answers[-1]:
                return None

    stream = stream_tokens(generate)
    next(stream)
    stream.close()
    assert not running()
    assert answers.count(False) == 1


def test_an_error_comes_after_the_tokens_before_it():
    def generate(on_token):
        on_token(0, [1])
        raise RuntimeError("broken")

    stream = stream_tokens(generate)
    assert next(stream) == [1]
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)
    assert not running()
