"""Work of child processes: functions that every start method of multiprocessing finds."""

from __future__ import annotations

import os
from multiprocessing.synchronize import Event
from typing import Any

from PIL import Image

import gitfast

LONG: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 10}
PICTURE = Image.new("RGB", (64, 64), "red")


def opened(model: gitfast.Model | str) -> gitfast.Model:
    """Return the model that was sent or inherited, or load the one that is named."""
    return gitfast.load(model) if isinstance(model, str) else model


def caption(model: gitfast.Model | str) -> str:
    return opened(model).caption(PICTURE).text


def leave_a_stream(model: gitfast.Model | str) -> None:
    stream = opened(model).stream(PICTURE, **LONG)
    assert next(stream)
    globals()["kept"] = stream


def work(model: gitfast.Model | str, begun: Event) -> None:
    model = opened(model)
    while True:
        model.caption([PICTURE] * 3, **LONG)
        begun.set()


def work_and_die(model: gitfast.Model | str) -> None:
    stream = opened(model).stream(PICTURE, **LONG)
    assert next(stream)
    os._exit(3)
