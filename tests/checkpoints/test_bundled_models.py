"""The bundled demonstration models on pictures held out of their training."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluate import evaluate

import gitfast

from support.paths import EXAMPLES
from support.tiers import slow


@pytest.mark.parametrize(("name", "captions"), [("git-tiny", 0.95), ("git-tiny-video", 0.90)])
def test_accuracy_on_200_held_out_examples(name: str, captions: float) -> None:
    accuracy = evaluate(gitfast.load(name), range(200), verbose=True)
    assert accuracy["captions"] >= captions
    assert accuracy["answers"] >= 0.95


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        slow("git-tiny", "bfloat16"),
        ("git-tiny", "int8"),
        ("git-tiny", "w8a8"),
        slow("git-tiny-video", "bfloat16"),
        slow("git-tiny-video", "int8"),
        slow("git-tiny-video", "w8a8"),
    ],
)
def test_fewer_bits_say_the_same(name: str, dtype: str) -> None:
    accuracy = evaluate(gitfast.load(name, dtype=dtype), range(100), verbose=True)
    exact = evaluate(gitfast.load(name), range(100))
    assert accuracy["captions"] >= exact["captions"] - 0.02
    assert accuracy["answers"] >= exact["answers"] - 0.02


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("images/*.png")), ids=lambda path: path.stem)
def test_example_image_is_captioned_as_its_name_says(path: Path) -> None:
    assert str(gitfast.load("git-tiny").caption(path)) == path.stem.replace("-", " ")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("clips/*.gif")), ids=lambda path: path.stem)
def test_example_clip_is_captioned_as_its_name_says(path: Path) -> None:
    assert str(gitfast.load("git-tiny-video").caption(path)) == path.stem.replace("-", " ")


@pytest.mark.parametrize("name", ["git-tiny", "git-tiny-video"])
def test_size_is_small_enough_to_travel_with_the_package(name: str) -> None:
    folder = EXAMPLES.parent / "models" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
