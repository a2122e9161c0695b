"""Frames of a video file, through PyAV.

Video files are hostile too: only the listed containers and codecs are opened, FFmpeg sees an open file and may not
open another, and every limit is checked before a frame is decoded or while frames are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from gitfast.errors import ImageError, VideoError
from gitfast.inputs.limits import Limits
from gitfast.inputs.pictures import array_to_rgb
from gitfast.inputs.reading import BUDGET

if TYPE_CHECKING:
    import PIL.Image

T = TypeVar("T")

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,ogg,flv,asf"
_CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg2video,mpeg1video,mjpeg,theora,prores,wmv2,vc1"
_PIXEL_BYTES = 32  # frames that the decoder keeps for reference and in its threads, and the one in use
_DEFAULT_BONUS = 5_000_000  # bonus, in pixels, of a stream marked as the default, as in the ffmpeg command


def read_video(
    file: IO[bytes],
    choose: Callable[[int], list[int]],
    prepare: Callable[[PIL.Image.Image], T],
    limits: Limits,
    name: str,
) -> list[T]:
    """Count the frames, then decode up to the last one wanted.

    Args:
        file: A file that can seek.
        choose: From the number of frames to the indices wanted.
        prepare: Applied to a frame as soon as it is decoded; no more than one is held.
        limits: Limits on the video's cost.
        name: The file's name, for messages.

    Raises:
        VideoError: no video of a known format, damaged, or more than the limits allow; or PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise VideoError(f'{name}: reading a video file needs PyAV: pip install "gitfast[video]"') from None
    total, hidden = _count_packets(file, limits, name)
    indices = choose(total)
    frames, decoded = _decode_frames(file, set(indices), hidden, prepare, limits, name)
    if len(frames) < len(set(indices)):  # fewer frames than packets: now their number is known
        indices = choose(decoded)
        frames, _ = _decode_frames(file, set(indices), hidden, prepare, limits, name)
    return [frames[index] for index in indices]


def check_count(total: int, limits: Limits, name: str) -> None:
    """Raise ``VideoError`` for more frames than are counted."""
    if total > limits.max_video_frames:
        raise VideoError(f"{name}: more than {limits.max_video_frames} frames (max_video_frames)")


def _count_packets(file: IO[bytes], limits: Limits, name: str) -> tuple[int, int]:
    """Count frames by their packets: the header's number may be missing or wrong.

    Returns:
        The frames that are shown, and those that are decoded and hidden: before the place where a phone cut the film.
    """
    with _decoding(name), _open_container(file, limits) as container:
        stream = _video_stream(container, limits, name)
        _check_seconds((container.duration or 0) / 1e6, limits, name)
        total, hidden, first = 0, 0, None
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet at the end
                continue
            total += 1
            hidden += packet.is_discard
            check_count(total, limits, name)
            if packet.pts is not None and stream.time_base is not None:
                first = packet.pts if first is None else first
                _check_seconds(float((packet.pts - first) * stream.time_base), limits, name)
        return total - hidden, hidden


def _decode_frames(
    file: IO[bytes], wanted: set[int], hidden: int, prepare: Callable[[PIL.Image.Image], T], limits: Limits, name: str
) -> tuple[dict[int, T], int]:
    """Return the wanted frames, prepared, and how many were decoded until the last of them."""
    frames: dict[int, T] = {}
    count = 0
    with _decoding(name), _open_container(file, limits) as container:
        stream = _video_stream(container, limits, name)
        size = stream.codec_context.width * stream.codec_context.height
        pixels = size * hidden
        _check_pixels(pixels + size * (max(wanted) + 1), limits, name)
        with BUDGET.decoding(_PIXEL_BYTES * size, limits.max_decoding_bytes):
            for frame in container.decode(stream):
                pixels += frame.width * frame.height
                _check_pixels(pixels, limits, name)
                if count in wanted:
                    limits.check_size((frame.width, frame.height), name, "max_frame_pixels")
                    upright = _displayed(frame.to_ndarray(format="rgb24"), _display_matrix(frame), name)
                    frames[count] = prepare(array_to_rgb(upright, name))
                count += 1
                if len(frames) == len(wanted):
                    break
                check_count(count, limits, name)
    return frames, count


def _display_matrix(frame: Any) -> tuple[float, float, float, float]:
    """Return (a, b, c, d): pixel (x, y) is shown at (a x + c y, b x + d y), by the camera's rotation and mirroring."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that PyAV does not know, beside it
        angle = np.deg2rad(frame.rotation)
        return np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    if data is None:
        return 1.0, 0.0, 0.0, 1.0
    values = np.frombuffer(bytes(data)[:36], np.int32) / 65536
    return values[0], values[1], values[3], values[4]


def _displayed(pixels: np.ndarray, matrix: tuple[float, float, float, float], name: str) -> np.ndarray:
    """Turn and mirror (H, W, 3), perhaps to (W, H, 3), as the matrix says."""
    a, b, c, d = matrix
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if not any(matrix):  # written by mistake; players show such files as they are
        return pixels
    if max(abs(b), abs(c)) < 0.01 * along:
        return pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    if max(abs(a), abs(d)) < 0.01 * across:
        return pixels.transpose(1, 0, 2)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]
    raise VideoError(f"{name}: its frames are shown turned by other than right angles, which is not supported")


def _open_container(file: IO[bytes], limits: Limits) -> Any:
    import av

    file.seek(0)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _CONTAINERS,
        "codec_whitelist": _CODECS,
        "max_pixels": str(limits.max_frame_pixels),
    }
    # Titles need not be UTF-8. PyAV 19 escapes what is not by itself, and has no argument for it.
    replacing: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    return av.open(file, mode="r", options=options, **replacing)


def _video_stream(container: Any, limits: Limits, name: str) -> Any:
    """Return the largest video stream that is no cover picture, its codec and frame size checked."""
    import av

    films = [
        stream
        for stream in container.streams.video
        if not {"attached_pic", "timed_thumbnails"} & set((stream.disposition.name or "").split("|"))
    ]
    if not films:
        cover = ", only a cover picture" if container.streams.video else ""
        raise VideoError(f"{name}: holds no video stream{cover}")

    def preference(stream: Any) -> int:
        context = stream.codec_context
        size = 0 if context is None else context.width * context.height
        return size + (_DEFAULT_BONUS if "default" in (stream.disposition.name or "").split("|") else 0)

    stream = max(films, key=preference)
    codec = stream.codec_context
    if codec is None or codec.name not in _CODECS.split(","):
        raise VideoError(f"{name}: its codec is not one of {_CODECS}")
    if codec.width == 0 or codec.height == 0:  # so FFmpeg leaves frames that it must not decode
        raise VideoError(
            f"{name}: its frames have no size, or more than {limits.max_frame_pixels} pixels (max_frame_pixels)"
        )
    limits.check_size((codec.width, codec.height), name, "max_frame_pixels")
    codec.options = {"max_pixels": str(limits.max_frame_pixels)}  # where the size changes on the way
    # Threads of FFmpeg that log into Python wait for its lock, which whoever joins them holds.
    codec.thread_type = "AUTO" if av.logging.get_level() is None else "NONE"
    return stream


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn a decoder's errors into ``VideoError``: they may be of any type, and their messages may hold addresses."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise VideoError(f"{name}: not enough memory to decode it") from None
    except Exception:
        raise VideoError(f"{name}: not a video, or its data is damaged or truncated") from None


def _check_seconds(seconds: float, limits: Limits, name: str) -> None:
    if seconds > limits.max_video_seconds:
        raise VideoError(
            f"{name}: lasts {seconds:.1f} s; at most {limits.max_video_seconds:g} s are read (max_video_seconds)"
        )


def _check_pixels(pixels: int, limits: Limits, name: str) -> None:
    if pixels > limits.max_video_pixels:
        raise VideoError(
            f"{name}: {pixels} pixels up to the last frame wanted; at most {limits.max_video_pixels} are decoded "
            "(max_video_pixels)"
        )
