"""Pictures, animations and videos, as encoded bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from gitfast.errors import ImageError, VideoError
from gitfast.inputs.formats import FORMATS
from gitfast.inputs.limits import Limits
from gitfast.inputs.pictures import load_image
from gitfast.inputs.video import load_clip

from support.fuzz.loop import Mutation, Target
from support.fuzz.mutations import repeated_scan, sealed_png

# Small, so that what a mutation asks for is soon refused, and a million executions end.
LIMITS = Limits(
    max_pixels=1_000_000,
    max_decoded_pixels=20_000_000,
    max_image_bytes=1_000_000,
    max_frame_pixels=1_000_000,
    max_video_pixels=20_000_000,
    max_video_frames=1000,
)
MUTATIONS: dict[str, list[Mutation]] = {"PNG": [sealed_png], "JPEG": [repeated_scan]}
VIDEOS = {"h264": ("mp4", "libx264"), "mpeg4": ("mp4", "mpeg4"), "vp8": ("webm", "libvpx")}
VIDEOS |= {"mjpeg": ("avi", "mjpeg"), "mpeg2": ("mpegts", "mpeg2video")}


def _pictures(image_format: str) -> list[bytes]:
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


def picture(image_format: str, read: Callable[..., object]) -> Callable[[Path], Target]:
    def make(_: Path) -> Target:
        warnings.simplefilter("ignore")
        mutations = MUTATIONS.get(image_format, [])
        return Target(lambda data: read(data, limits=LIMITS), _pictures(image_format), ImageError, mutations)

    return make


def _encoded(container: str, codec: str) -> bytes:
    import av

    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width = 32, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def video(container: str, codec: str) -> Callable[[Path], Target]:
    def make(_: Path) -> Target:
        warnings.simplefilter("ignore")
        return Target(lambda data: load_clip(data, limits=LIMITS), [_encoded(container, codec)], VideoError)

    return make


TARGETS = {f"image-{name.lower()}": picture(name, load_image) for name in FORMATS}
TARGETS |= {f"clip-{name.lower()}": picture(name, load_clip) for name in FORMATS}
TARGETS |= {f"video-{name}": video(*kind) for name, kind in VIDEOS.items()}
