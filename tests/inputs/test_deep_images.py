"""Deep pictures, tensors and records: the same picture gives the same pixels however it is handed over."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import gitfast
from gitfast.errors import ImageError
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.pictures import load_image
from gitfast.inputs.video import load_clip

from support.processes import run_python

LEVELS = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)


def encoded(image: PIL.Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def grey(source: object) -> np.ndarray:
    picture = np.asarray(load_image(source))  # type: ignore[arg-type]
    np.testing.assert_array_equal(picture[..., 0], picture[..., 2])
    return picture[..., 0]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_shades_however_it_is_handed_over(image_format: str, tmp_path: Path) -> None:
    """Converting 16-bit grey, as Pillow and transformers do, clips everything above 255 to white."""
    data = encoded(PIL.Image.fromarray(LEVELS), image_format)
    path = tmp_path / "grey"
    path.write_bytes(data)
    opened = PIL.Image.open(path)
    loaded = PIL.Image.open(io.BytesIO(data))
    loaded.load()
    swapped = PIL.Image.frombytes("I;16B", (60, 40), LEVELS.astype(">u2").tobytes())
    for source in (path, data, io.BytesIO(data), opened, loaded, loaded.copy(), swapped, LEVELS, LEVELS[..., None]):
        np.testing.assert_array_equal(grey(source), LEVELS >> 8)
    np.testing.assert_array_equal(ImageProcessor()([path, PIL.Image.open(path)])[0], ImageProcessor()(LEVELS)[0])


def tiff(levels: np.ndarray, bits: int, photometric: int) -> bytes:
    """A grey TIFF of one strip, little endian; of 12 bits two numbers in three bytes."""
    height, width = levels.shape
    if bits == 12:
        pairs = levels.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    else:
        packed = levels.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize("handed_over", [bytes, lambda data: PIL.Image.open(io.BytesIO(data))])
def test_tiffs_of_12_bits_and_with_white_at_zero(handed_over) -> None:
    np.testing.assert_array_equal(grey(handed_over(tiff(LEVELS >> 4, 12, 1))), LEVELS >> 8)
    np.testing.assert_array_equal(grey(handed_over(tiff(LEVELS, 16, 1))), LEVELS >> 8)
    np.testing.assert_array_equal(grey(handed_over(tiff(LEVELS, 16, 0))), 255 - (LEVELS >> 8))


def test_the_transparent_shade_of_a_16_bit_png_is_white() -> None:
    data = encoded(PIL.Image.fromarray(np.array([[0, 300], [301, 65535]], np.uint16)))
    chunk = b"tRNS" + struct.pack(">H", 300)
    data = data[:33] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    for source in (data, PIL.Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(grey(source), [[0, 255], [1, 255]])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(mode: str) -> None:
    image = PIL.Image.fromarray(LEVELS.astype(np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    data = encoded(image, "TIFF")
    for source in (image, data, PIL.Image.open(io.BytesIO(data))):
        with pytest.raises(ImageError, match=f"numbers of mode {mode} have no defined range"):
            load_image(source)


# Arrays and tensors


COLOUR = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first(channels: int) -> None:
    last = COLOUR[..., :channels]
    np.testing.assert_array_equal(np.asarray(load_image(np.moveaxis(last, -1, 0))), np.asarray(load_image(last)))


def test_channels_first_match_transformers() -> None:
    from transformers import CLIPImageProcessorPil

    first = np.moveaxis(COLOUR[..., :3], -1, 0)
    np.testing.assert_array_equal(ImageProcessor()(first)[0], CLIPImageProcessorPil()(first).pixel_values[0])


def test_of_two_readings_an_array_has_its_channels_last_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"shape \(3, 8, 4\) is taken as channels last"):
        assert load_image(np.zeros((3, 8, 4), np.uint8)).size == (8, 3)


def test_a_batch_says_so_once_for_each_array(checkpoint_folder: Path) -> None:
    model = gitfast.load(checkpoint_folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.caption([np.zeros((3, 40, 4), np.uint8)] * 2)
    assert [str(warning.message) for warning in caught] == [
        "image array: shape (3, 40, 4) is taken as channels last; it may be channels first"
    ] * 2


def test_warnings_of_others_are_left_alone_while_a_file_is_decoded() -> None:
    from gitfast.inputs.decoder_warnings import held_back

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with held_back("x.tiff"):
            warnings.warn("of the application", stacklevel=1)
            for text in ("first", "second"):
                warnings.warn_explicit(text, UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
    assert [str(warning.message) for warning in caught] == ["of the application", "x.tiff: first (and 1 more)"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors_are_images(channels: int) -> None:
    import torch

    expected = np.asarray(load_image(COLOUR[..., :channels]))
    tensor = torch.from_numpy(COLOUR[..., :channels])
    for source in (tensor, tensor.movedim(-1, 0), tensor.movedim(-1, 0).contiguous()):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)
    assert load_image(torch.zeros((3, 8, 4), dtype=torch.uint8)).size == (4, 8)
    batch = torch.stack([tensor.movedim(-1, 0)] * 2)
    np.testing.assert_array_equal(ImageProcessor()(batch)[1], ImageProcessor()(tensor)[0])


def test_tensors_are_clips() -> None:
    import torch

    clip = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 40, 60)
    for source in (clip, clip.movedim(1, -1), list(clip)):
        assert [np.asarray(frame).max() for frame in load_clip(source)] == [1, 3, 5, 7, 9, 11]


def test_tensors_without_a_range_or_numbers_are_refused() -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        with pytest.raises(ImageError, match=r"expected .*uint8"):
            load_image(torch.zeros((3, 8, 9), dtype=dtype))
    with pytest.raises(ImageError, match="expected a uint8 tensor"):
        load_image(torch.zeros((3, 8, 9), dtype=torch.uint8, device="meta"))


def test_arrays_are_read_without_torch() -> None:
    code = (
        "import sys, numpy as np; from gitfast.inputs.pictures import load_image; "
        "load_image(np.zeros((8, 9, 3), np.uint8)); print('torch' in sys.modules)"
    )
    done = run_python(code, check=True)
    assert done.stdout.strip() == "False"


# Records of datasets


def test_records_of_datasets(tmp_path: Path) -> None:
    data = encoded(PIL.Image.fromarray(COLOUR[..., :3]))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for record in (
        {"bytes": data, "path": None},
        {"bytes": data, "path": "not/here.png"},
        {"bytes": None, "path": str(path)},
        {"path": path},
    ):
        np.testing.assert_array_equal(np.asarray(load_image(record)), COLOUR[..., :3])
        assert len(load_clip(record, num_frames=2)) == 2
    batch = ImageProcessor()([{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}])
    np.testing.assert_array_equal(batch[0], batch[1])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "expected a mapping with 'bytes' or 'path', got the keys"),
        ({"image": b"x", "label": 3}, r"got the keys \['image', 'label'\]"),
        ({"bytes": None, "path": None}, "expected a mapping with 'bytes' or 'path'"),
        ({"bytes": "text", "path": "a.png"}, "a.png: bytes: expected bytes, got str"),
        ({"bytes": None, "path": 7}, "path: expected str, got int"),
        ({"bytes": b"broken", "path": "a.png"}, "a.png: not an image"),
        ({"bytes": None, "path": "no.png"}, "no.png: No such file"),
    ],
)
def test_bad_records(record: dict, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(record)
