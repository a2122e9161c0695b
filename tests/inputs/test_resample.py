"""The native resampling: Pillow's bytes, whatever the sizes, and the settings under which it is used."""

from __future__ import annotations

import threading

import numpy as np
import PIL.Image
import pytest

from gitfast import _C
from gitfast.inputs import image as module
from gitfast.inputs.image import ImageProcessor

from support.processes import run_python

FILTERS = ("bicubic", "bilinear", "box")

pytestmark = pytest.mark.skipif(not module._NATIVE, reason="Pillow resizes on this machine")


def picture(rng, width, height) -> PIL.Image.Image:
    """Noise; or black and white, whose overshoot is clipped."""
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values if rng.integers(2) else (values >> 7) * np.uint8(255))


def by_pillow(processor: ImageProcessor, image: PIL.Image.Image, monkeypatch, normalize=True) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_NATIVE", False)
        return processor.preprocess(image, normalize=normalize)


def sizes(rng, count):
    """Small, photographs, as thin as can be, and about twice as tall as wide, where Pillow's order of passes turns."""
    for _ in range(count):
        most = int(rng.choice([4, 30, 200, 500]))
        width, height = (int(x) for x in rng.integers(1, most + 1, 2))
        if rng.integers(6) == 0:
            width = int(rng.integers(1, 6000))
            height = int(rng.integers(1, 5))
        elif rng.integers(4) == 0:
            height = max(1, round(width * rng.uniform(1.8, 2.2)))
        yield width, height


@pytest.mark.parametrize("filter", FILTERS)
def test_bytes_are_pillow_s(filter, monkeypatch):
    """Resized to the shorter edge, cropped anywhere, padded where the crop is larger; beyond what any setting asks."""
    rng, used = np.random.default_rng(FILTERS.index(filter)), []
    right = _C.resample

    def counted(*arguments):
        used.append(arguments)
        return right(*arguments)

    monkeypatch.setattr(_C, "resample", counted)
    for width, height in sizes(rng, 1200):
        edge = int(rng.integers(1, 80))
        crop = None if rng.integers(3) == 0 else tuple(int(x) for x in rng.integers(1, 120, 2))
        if max(width, height) / min(width, height) * edge > 4000:
            continue
        rounding = ["transformers", "original"][rng.integers(2)]
        processor = ImageProcessor(size=edge, crop_size=crop, resample=filter, rounding=rounding)
        image = picture(rng, width, height)
        got = processor.preprocess(image, normalize=False)
        want = by_pillow(processor, image, monkeypatch, normalize=False)
        np.testing.assert_array_equal(got, want, err_msg=f"{width} x {height}, {processor}")
    assert len(used) > 500


@pytest.mark.parametrize("statistics", [(None, None), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.7))])
def test_normalised_values_are_numpy_s(statistics, monkeypatch):
    mean, std = statistics
    processor = ImageProcessor(size=40, crop_size=(50, 33), image_mean=mean, image_std=std)
    for size in ((64, 48), (48, 64), (7, 5), (40, 40)):
        image = picture(np.random.default_rng(1), *size)
        got = processor.preprocess(image)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, by_pillow(processor, image, monkeypatch))


def test_photographs_at_the_models_own_size(monkeypatch):
    rng, processor = np.random.default_rng(3), ImageProcessor()
    for width, height in (
        (640, 480),
        (480, 640),
        (1333, 800),
        (1024, 1024),
        (500, 375),
        (224, 224),
        (224, 300),
        (97, 61),
    ):
        image = picture(rng, width, height)
        np.testing.assert_array_equal(processor.preprocess(image), by_pillow(processor, image, monkeypatch))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": (30, 40)}, (64, 48)),
        ({"size": 30, "max_size": 40, "crop_size": None}, (64, 48)),
        ({"resample": "lanczos"}, (64, 48)),
        ({"resample": "nearest"}, (64, 48)),
        ({"size": None}, (64, 48)),
        ({}, (300, 1000)),
        ({}, (2500, 2000)),
    ],
)
def test_the_rest_is_left_to_pillow(settings, size, monkeypatch):
    """Other aspects, whose order of passes depends on Pillow's version; other filters; pictures in several blocks."""
    image = picture(np.random.default_rng(0), *size)
    monkeypatch.setattr(_C, "resample", None)
    ImageProcessor(**settings).preprocess(image)


def test_several_at_once_without_the_gil():
    image, processor = picture(np.random.default_rng(0), 1900, 1500), ImageProcessor()
    want, ticks, stop = processor.preprocess(image), 0, threading.Event()

    def tick():
        nonlocal ticks
        while not stop.wait(0.0005):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    np.testing.assert_array_equal(processor([image] * 12, num_threads=4), np.stack([want] * 12))
    stop.set()
    ticker.join()
    assert ticks > 0


def test_arguments_that_cannot_be():
    pixels = np.zeros((4, 5, 3), np.uint8)

    def call(**changed):
        arguments = {
            "pixels": pixels, "size": (5, 4), "resized": (3, 3), "filter": "box", "start": (0, 0), "crop": (3, 3),
            "values": None,
        }  # fmt: skip
        return _C.resample(**{**arguments, **changed})

    assert call().shape == (3, 3, 3)
    assert not call(start=(100, -100)).any()
    for changed, message in [
        ({"size": (4, 5)}, "pixels: expected"),
        ({"size": (-5, 4)}, "sizes: expected"),
        ({"pixels": pixels.astype(np.int32)}, "pixels: "),
        ({"pixels": pixels[:, ::2]}, "pixels: "),
        ({"resized": (0, 3)}, "sizes: expected"),
        ({"filter": "lanczos"}, "filter: expected"),
        ({"values": np.zeros((3, 255), np.float32)}, "values: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changed)
    for other in (PIL.Image.new("L", (5, 4)), PIL.Image.new("RGB", (5, 5)), PIL.Image.new("F", (5, 4))):
        with pytest.raises(ValueError, match="pixels: expected four bytes for each of 5 x 4 pixels"):
            call(pixels=other.__arrow_c_array__()[1])


LARGEST = 2**31 - 1


@pytest.mark.parametrize("values", [None, np.zeros((3, 256), np.float32)], ids=["bytes", "floats"])
def test_sizes_that_products_overflow_for(values):
    pixels = np.full((4, 4, 3), 200, np.uint8)

    def call(size=(4, 4), resized=(4, 4), start=(0, 0), crop=(1, 1)):
        return _C.resample(pixels, size, resized, "bicubic", start, crop, values)

    # Of the largest there are only what is kept is computed.
    for largest in ({"resized": (LARGEST, LARGEST)}, {"start": (-LARGEST, LARGEST)}):
        assert call(**largest).size == 3
    far = call(resized=(LARGEST, LARGEST), start=(LARGEST - 1, LARGEST - 1), crop=(2, 2))
    assert far.size == 12
    if values is None:
        assert far.ravel().tolist() == [200] * 3 + [0] * 9
    for name in ("size", "resized", "crop"):
        for edge in (0, -1, -LARGEST, LARGEST + 1, 1 << 40, 1 << 62):
            for pair in ((edge, 4), (4, edge)):
                with pytest.raises(ValueError, match=r"^sizes: expected pixels from 1 to 2147483647"):
                    call(**{name: pair})
    for edge in (LARGEST + 1, -LARGEST - 1, 1 << 62):
        for pair in ((edge, 0), (0, edge)):
            with pytest.raises(ValueError, match=r"^start: expected less than 2147483647"):
                call(start=pair)
    with pytest.raises(ValueError, match=r"^pixels: expected"):
        call(size=(LARGEST, LARGEST))
    with pytest.raises(ValueError, match="array is too big"):
        call(crop=(LARGEST, LARGEST))


def test_importing_it_loads_no_pillow():
    code = "import sys, gitfast.inputs.image; assert 'PIL' not in sys.modules"
    assert run_python(code).returncode == 0
