"""Mutated video files through ``load_clip``."""

from __future__ import annotations

import io

import numpy as np
import pytest

from gitfast.errors import VideoError
from gitfast.inputs.limits import Limits
from gitfast.inputs.video import load_clip

from support.fuzzing import fuzz

LIMITS = Limits(max_frame_pixels=1_000_000, max_video_pixels=20_000_000, max_video_frames=1000, max_pixels=1_000_000)
KINDS = (("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mjpeg"), ("mpegts", "mpeg2video"))


def video(container: str, codec: str) -> bytes:
    av = pytest.importorskip("av")
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_mutated_videos(container: str, codec: str) -> None:
    outcome = fuzz(lambda data: load_clip(data, limits=LIMITS), [video(container, codec)], VideoError)
    assert 0 < outcome.accepted < outcome.executions
