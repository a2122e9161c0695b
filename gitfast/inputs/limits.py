"""``Limits``: bounds on the cost of one input, whoever made it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gitfast import arguments
from gitfast.errors import ArgumentError, ImageError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on the cost of an input, each checked before the work that it bounds; pass others to ``gitfast.load``.

    The defaults take a phone's 108-megapixel photograph and ten minutes of 720p video, and keep one hostile input to
    seconds and to about a gigabyte.

    Attributes:
        max_image_bytes: Bytes of an encoded picture or animation.
        max_pixels: Pixels of a picture, and of a frame of an animation or in a list of frames.
        max_aspect_ratio: The longer side over the shorter: a 10000 x 2 picture would be resized to 1120000 x 224.
        max_decoded_pixels: Pixels decoded for one picture or animation: pixels times the scans of a progressive JPEG,
            or times an animation's frames up to the last one wanted.
        max_video_bytes: Bytes of an encoded video.
        max_video_seconds: Duration of a video.
        max_video_frames: Frames of a video, an animation or a list, all counted, of which a clip is chosen.
        max_frame_pixels: Pixels of a frame of a video.
        max_video_pixels: Pixels decoded for one video: pixels of a frame times the frames up to the last one wanted.
        max_clip_frames: Frames of a clip.
        max_decoding_bytes: Bytes of the pictures that all threads of the process are decoding. A picture that needs
            more than this is decoded alone.
    """

    max_image_bytes: int = 100_000_000
    max_pixels: int = 120_000_000
    max_aspect_ratio: float = 50.0
    max_decoded_pixels: int = 2_000_000_000
    max_video_bytes: int = 2_000_000_000
    max_video_seconds: float = 600.0
    max_video_frames: int = 36_000
    max_frame_pixels: int = 36_000_000  # 7680 x 4320 is 33 million
    max_video_pixels: int = 20_000_000_000
    max_clip_frames: int = 512
    max_decoding_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, int):
                arguments.integer(field.name, value, minimum=1)
            elif not arguments.real(field.name, value) > 0:  # NaN is not, either
                raise ArgumentError(f"{field.name}: expected a positive number, got {arguments.shown(value)}")

    def check_size(
        self, size: tuple[int, int], name: str, limit: Literal["max_pixels", "max_frame_pixels"] = "max_pixels"
    ) -> None:
        """Refuse a picture of this (width, height).

        Raises:
            ImageError: the size exceeds a limit, or is empty.
        """
        width, height = size
        if width < 1 or height < 1:
            raise ImageError(f"{name}: {width} x {height} pixels; an image has at least 1 x 1")
        if width * height > getattr(self, limit):
            raise ImageError(f"{name}: {width} x {height} pixels; at most {getattr(self, limit)} are allowed ({limit})")
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise ImageError(
                f"{name}: {width} x {height} pixels; the longer side may be at most {self.max_aspect_ratio:g} times "
                "the shorter (max_aspect_ratio)"
            )

    def check_decoded(self, size: tuple[int, int], times: int, what: str, name: str) -> None:
        """Refuse a picture of this size that is decoded ``times`` over: in scans, or frame by frame.

        Raises:
            ImageError: together that is more than ``max_decoded_pixels``.
        """
        if times * size[0] * size[1] > self.max_decoded_pixels:
            raise ImageError(
                f"{name}: {times} {what} of {size[0]} x {size[1]} pixels; at most {self.max_decoded_pixels} pixels "
                "are decoded (max_decoded_pixels)"
            )


DEFAULT_LIMITS = Limits()
