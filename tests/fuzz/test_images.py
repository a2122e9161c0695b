"""Mutated pictures and animations through ``load_image`` and ``load_clip``."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from gitfast.errors import ImageError
from gitfast.inputs.formats import FORMATS
from gitfast.inputs.limits import Limits
from gitfast.inputs.pictures import load_image
from gitfast.inputs.video import load_clip

from support.fuzzing import MAX_INPUT_BYTES, Mutation, fuzz

# Small, so that what a mutation asks for is soon refused, and a million executions end.
LIMITS = Limits(max_pixels=1_000_000, max_decoded_pixels=20_000_000, max_image_bytes=1_000_000, max_video_frames=1000)


def seeds(image_format: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    frames = [PIL.Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)) for _ in range(3)]
    alpha = frames[0].copy()
    alpha.putalpha(frames[1].convert("L"))
    deep = PIL.Image.fromarray(rng.integers(0, 65536, (9, 13), np.uint16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": frames[1:]}
    variants: dict[str, list[tuple[PIL.Image.Image, dict[str, object]]]] = {
        "JPEG": [(frames[0], {"exif": exif}), (frames[0], {"progressive": True}), (frames[0].convert("CMYK"), {})],
        "PNG": [
            (alpha, {"exif": exif}),
            (deep, {}),
            (frames[0].quantize(8), {"transparency": 2}),
            (frames[0], animated),
        ],
        "WEBP": [(frames[0], {}), (alpha, {"lossless": True, "exif": exif}), (frames[0], animated)],
        "GIF": [(frames[0], {}), (frames[0], animated | {"disposal": 2}), (frames[0], animated | {"transparency": 3})],
        "BMP": [(frames[0], {}), (frames[0].convert("P"), {}), (frames[0].convert("1"), {})],
        "TIFF": [
            (frames[0], animated),
            (deep, {}),
            (frames[0], {"compression": "tiff_lzw"}),
            (alpha, {"compression": "tiff_deflate"}),
            (frames[0], {"compression": "jpeg"}),
            (frames[0], {"big_tiff": True}),
        ],
    }
    encoded = []
    for image, options in variants[image_format]:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        encoded.append(buffer.getvalue())
    return encoded


def sealed_png(data: bytearray, rng: np.random.Generator) -> bytes:
    """One chunk of a PNG changed, repeated or dropped, its checksum right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((bytes(data[place + 4 : place + 8]), bytearray(data[place + 8 : place + 8 + length])))
        place += 12 + length
    if not chunks:
        return bytes(data)
    index = int(rng.integers(len(chunks)))
    body = chunks[index][1]
    choice = rng.integers(4)
    if choice == 0 and body:
        body[rng.integers(len(body))] = int(rng.integers(256))
    elif choice == 1:
        chunks.insert(index, chunks[int(rng.integers(len(chunks)))])
    elif choice == 2:
        del chunks[index]
    else:
        text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(rng.bytes(100) * int(rng.integers(1, 20_000)))
        chunks.insert(index, (b"iTXt", bytearray(text)))
    written = (
        struct.pack(">I", len(part)) + name + bytes(part) + struct.pack(">I", zlib.crc32(name + bytes(part)))
        for name, part in chunks
    )
    return bytes(data[:8]) + b"".join(written)


def repeated_scan(data: bytearray, rng: np.random.Generator) -> bytes:
    """A JPEG whose bytes from one marker on come several times."""
    starts = [match.start() for match in re.finditer(rb"\xff[^\0\xff]", data)]
    if not starts:
        return bytes(data)
    begin, end = sorted(int(rng.choice(starts)) for _ in range(2))
    times = int(rng.integers(1, 2 + MAX_INPUT_BYTES // (1 + end - begin)))
    return bytes(data[:end] + data[begin:end] * times + data[end:])


MUTATIONS: dict[str, list[Mutation]] = {"PNG": [sealed_png], "JPEG": [repeated_scan]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("reader", ["load_image", "load_clip"])
def test_mutated_pictures(image_format: str, reader: str) -> None:
    pytest.importorskip("av")  # a picture that is none any more may be a video

    def read(data: bytes) -> object:
        return load_image(data, limits=LIMITS) if reader == "load_image" else load_clip(data, limits=LIMITS)

    outcome = fuzz(read, seeds(image_format), ImageError, MUTATIONS.get(image_format, []))
    assert 0 < outcome.accepted < outcome.executions
