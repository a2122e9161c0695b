"""Sizes and switches of ``preprocessor_config.json`` beside transformers, and numbers that no file should hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.errors import ConfigError
from gitfast.inputs.image import ImageProcessor

from support.tiers import examples


def sizes(values: dict, width: int, height: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ours, transformers') for a picture of this size, without a crop."""
    from transformers import CLIPImageProcessorPil

    image = PIL.Image.new("RGB", (width, height))
    values = {"do_center_crop": False, **values}
    theirs = CLIPImageProcessorPil(**values)(image, return_tensors="np").pixel_values[0]
    return ImageProcessor.from_dict(values)(image)[0].shape, theirs.shape


def test_the_longer_edge_follows_the_exact_shorter_one() -> None:
    ours, theirs = sizes({"size": {"shortest_edge": 200, "longest_edge": 300}}, 7, 1)
    assert ours == theirs == (3, 43, 300)


@settings(max_examples=examples(60), deadline=None)
@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    shortest=st.integers(1, 90),
    longest=st.integers(1, 120),
)
def test_any_pair_of_edges_gives_transformers_size(width: int, height: int, shortest: int, longest: int) -> None:
    if max(width, height) > 20 * min(width, height):
        width = height
    if round(longest * min(width, height) / max(width, height)) == 0:  # transformers makes a picture without pixels
        longest = 20
    ours, theirs = sizes({"size": {"shortest_edge": shortest, "longest_edge": longest}}, width, height)
    assert ours == theirs


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 32, "default_to_square": True}, (3, 32, 32)),
        ({"size": 32, "default_to_square": False}, (3, 32, 48)),
        ({"size": {"shortest_edge": 32}, "default_to_square": True}, (3, 32, 48)),
        ({"use_square_size": True}, (3, 224, 224)),
        ({"size": {"shortest_edge": 32}, "use_square_size": True}, (3, 224, 224)),
        ({"size": {"shortest_edge": 32}, "use_square_size": False}, (3, 32, 48)),
    ],
    ids=str,
)
def test_switches_of_squares_are_those_of_transformers(values: dict, expected: tuple[int, ...]) -> None:
    assert sizes(values, 60, 40) == (expected, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rescale_factor": 1%s}' % ("0" * 400), "rescale_factor: expected a number"),
        ('{"rescale_factor": 1e39}', "rescale_factor: expected a number"),
        ('{"image_mean": [0.5, 0.5, 1%s]}' % ("0" * 400), "image_mean: expected three numbers"),
        ('{"image_std": 1%s}' % ("0" * 400), "image_std: expected three numbers"),
        ('{"size": 1%s}' % ("0" * 400), "size: expected"),
        ('{"crop_size": [224, 1%s]}' % ("0" * 400), "crop_size.1.: expected pixels"),
        ('{"default_to_square": "no"}', "default_to_square: expected true or false"),
        ('{"use_square_size": 1}', "use_square_size: expected true or false"),
        ('{"data_format": "channels_last"}', "data_format: expected 'channels_first'"),
        ('{"size": {"max_height": 30, "max_width": 30}}', "size: expected an integer"),
        ('{"size": "%s"}' % ("x" * 5000), "size: expected an integer"),
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_names_the_file_and_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        ImageProcessor.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "VideoMAEImageProcessor"])
@pytest.mark.parametrize(
    ("key", "switch"),
    [
        ("size", "do_resize"),
        ("resample", "do_resize"),
        ("crop_size", "do_center_crop"),
        ("rescale_factor", "do_rescale"),
        ("image_mean", "do_normalize"),
        ("image_std", "do_normalize"),
    ],
)
def test_null_is_refused_where_transformers_needs_a_value(key: str, switch: str, kind: str, tmp_path: Path) -> None:
    import transformers

    path = tmp_path / "preprocessor_config.json"
    values = {"image_processor_type": kind, "do_center_crop": True, key: None}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"{key}: expected .* got None") as caught:
        ImageProcessor.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    theirs = getattr(transformers, f"{kind}Pil")
    with pytest.raises(ValueError, match=f"`{key}`.* must"):
        theirs.from_dict(values)(PIL.Image.new("RGB", (300, 300)))
    assert ImageProcessor.from_dict({**values, switch: False})


# preprocess="fast"


def photograph(width: int, height: int) -> bytes:
    """A JPEG with the smooth shades and the edges of a photograph."""
    import io

    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), 3)
    pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 12, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 240
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90, exif=_turned())
    return buffer.getvalue()


def _turned() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("size", [(2000, 1500), (1501, 2003), (900, 900), (500, 400)])
def test_fast_decoding_is_near_and_of_the_same_size(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reduced: list[tuple[int, int]] = []
    preprocess = ImageProcessor.preprocess

    def watched(self: ImageProcessor, image: PIL.Image.Image, **options: object) -> np.ndarray:
        reduced.append(image.size)
        return preprocess(self, image, **options)

    monkeypatch.setattr(ImageProcessor, "preprocess", watched)
    data = photograph(*size)
    for settings_of in ({}, {"size": 96, "crop_size": 96}, {"size": {"height": 64, "width": 128}}):
        exact = ImageProcessor.from_dict({"do_center_crop": False, **settings_of})
        fast = ImageProcessor(**{**vars(exact), "fast": True})
        a, b = (p(data, normalize=False)[0].astype(np.int16) for p in (exact, fast))
        assert a.shape == b.shape
        assert np.abs(a - b).mean() < 2
        full, small = reduced[-2:]
        assert full == size[::-1]
        target = a.shape[1::-1]
        assert all(2 * wanted <= have for wanted, have in zip(target, small, strict=True)) or small == full
    if min(size) > 900:
        assert small < full


def test_fast_decoding_leaves_other_formats_exact() -> None:
    import io

    buffer = io.BytesIO()
    PIL.Image.open(io.BytesIO(photograph(900, 700))).save(buffer, "PNG")
    exact, fast = ImageProcessor(), ImageProcessor(fast=True)
    np.testing.assert_array_equal(exact(buffer.getvalue()), fast(buffer.getvalue()))
    opened = PIL.Image.open(io.BytesIO(photograph(900, 700)))  # may be used again by who opened it
    np.testing.assert_array_equal(exact(opened), fast(opened))
    assert json.dumps(exact.to_dict()) == json.dumps(fast.to_dict())
