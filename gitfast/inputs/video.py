"""Clips: a few frames of a video, chosen from frames at hand, an animated image, or a file read through PyAV.

Video files are hostile too: only the listed containers and codecs are opened, FFmpeg sees an open file and may not
open another, and every limit is checked before a frame is decoded or while frames are counted.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gitfast.errors import ImageError, VideoError
from gitfast.inputs.image import ImageLimits, describe_source, load_image, open_encoded, open_image, read_encoded

if TYPE_CHECKING:
    import PIL.Image

    from gitfast.inputs.image import ImageSource

VideoSource: TypeAlias = "ImageSource | Sequence[ImageSource]"
Sampling: TypeAlias = Literal["uniform", "hf"] | Sequence[int] | Callable[[int], Iterable[int]]

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,ogg,flv,asf"
_CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg2video,mpeg1video,mjpeg,theora,prores,wmv2,vc1"
_IMAGE_MAGIC = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_VIDEO_MAGIC = (b"\x1aE\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"OggS", b"FLV\x01", b"0&\xb2u")


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What a video may cost. ``max_frames`` bounds the frames kept, the others what must be read to find them."""

    max_frames: int = 512
    max_seconds: float = 60.0
    max_source_frames: int = 7_200
    max_encoded_bytes: int = 500_000_000
    frame: ImageLimits = field(default_factory=lambda: ImageLimits(max_pixels=9_000_000))  # 4096 x 2160


DEFAULT_LIMITS = VideoLimits()


def sample_indices(total: int, num_frames: int, sampling: Sampling = "uniform", seed: int = 0) -> list[int]:
    """Which of ``total`` frames make a clip.

    Args:
        total: Frames of the source.
        num_frames: Frames of the clip.
        sampling: "uniform" takes the middle of ``num_frames`` equal parts, repeating frames of a shorter source.
            "hf" is the sampling of transformers' GIT documentation: a random window of 4 x num_frames frames.
            Or the indices themselves, or a function from ``total`` to them.
        seed: Of the random window: the same as after ``np.random.seed(seed)``.

    Raises:
        VideoError: no frames, a window longer than the source, or an index outside it.
    """
    if total < 1:
        raise VideoError("expected at least one frame, got none")
    named = sampling if isinstance(sampling, str) else None  # an array would be compared number by number
    if named == "uniform":
        return [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
    if named == "hf":
        window = 4 * num_frames
        if total <= window:
            raise VideoError(f"sampling 'hf' needs more than {window} frames, got {total}; 'uniform' takes any number")
        end = np.random.RandomState(seed).randint(window, total)
        picks = np.linspace(end - window, end, num=num_frames)
        return [int(i) for i in np.clip(picks, end - window, end - 1)]
    if isinstance(sampling, str):
        raise ValueError(f"sampling: expected 'uniform', 'hf', indices or a function, got {sampling!r}")
    indices = [int(i) for i in (sampling(total) if callable(sampling) else sampling)]
    if not indices or min(indices) < 0 or max(indices) >= total:
        raise VideoError(f"sampling: expected indices from 0 to {total - 1}, got {indices}")
    return indices


def load_clip(
    source: VideoSource,
    *,
    num_frames: int = 6,
    sampling: Sampling = "uniform",
    seed: int = 0,
    exif: bool = True,
    limits: VideoLimits = DEFAULT_LIMITS,
    repeat_stills: bool = True,
) -> list[PIL.Image.Image]:
    """The frames of one clip, upright RGB pictures.

    Args:
        source: A list of frames (each anything ``load_image`` takes), a uint8 array (T, H, W, 3), an animated image,
            or a video as path, bytes or binary file object. A still image repeats.
        num_frames, sampling, seed: As in ``sample_indices``.
        exif: For encoded images, as in ``load_image``.
        limits: What the video may cost.
        repeat_stills: Take a still image as a clip that does not move; otherwise it is an error.

    Raises:
        VideoError: the source cannot be read or exceeds a limit; or it is a video file and PyAV is not installed.
    """

    def choose(total: int) -> list[int]:
        if num_frames > limits.max_frames:
            raise VideoError(f"at most {limits.max_frames} frames are kept, got {num_frames}")
        indices = sample_indices(total, num_frames, sampling, seed)
        if len(indices) > limits.max_frames:
            raise VideoError(f"at most {limits.max_frames} frames are kept, got {len(indices)}")
        return indices

    name = describe_source(source)
    if isinstance(source, np.ndarray) and source.ndim != 4:
        if not repeat_stills and source.ndim in (2, 3):
            raise _still_error(name, num_frames)
        raise VideoError(f"expected an array of shape (T, H, W, 3), got {source.shape}")
    if isinstance(source, (list, tuple, np.ndarray)):
        return _pick_frames(source, choose, exif, limits)
    try:
        pictures, still = _read_frames(source, choose, exif, limits, name)
    except ImageError as error:
        message = str(error)
        raise VideoError(message if message.startswith(name) else f"{name}: {message}") from None
    if still and not repeat_stills:
        raise _still_error(name, num_frames)
    return pictures


def looks_like_video(source: Any) -> bool:
    """Tell by its first bytes whether a path, bytes or seekable file is a video file. An unreadable one is not."""
    try:
        file = open_encoded(source, "video")
    except ImageError:
        return False
    try:
        file.seek(0)
        header = file.read(12)
    except Exception:  # a file object of the user may raise anything
        return False
    finally:
        if file is not source:
            file.close()
    if not isinstance(header, bytes):
        return False
    return header.startswith(_VIDEO_MAGIC) or header[4:8] == b"ftyp" or (header[:4], header[8:]) == (b"RIFF", b"AVI ")


def _still_error(name: str, num_frames: int) -> VideoError:
    return VideoError(
        f"{name}: a single image, and the model reads clips of {num_frames} frames: pass a video or a list of frames "
        "(of one, [image], it repeats), or load a model of images such as git-base-coco"
    )


def _pick_frames(
    frames: Sequence[Any] | np.ndarray, choose: Callable[[int], list[int]], exif: bool, limits: VideoLimits
) -> list[PIL.Image.Image]:
    """Loads the chosen ones of frames at hand, each once."""
    indices = choose(len(frames))
    loaded = {}
    for index in sorted(set(indices)):
        try:
            loaded[index] = load_image(frames[index], exif=exif, limits=limits.frame)
        except ImageError as error:
            raise VideoError(f"frames[{index}]: {error}") from None
    return [loaded[index] for index in indices]


def _read_frames(
    source: Any, choose: Callable[[int], list[int]], exif: bool, limits: VideoLimits, name: str
) -> tuple[list[PIL.Image.Image], bool]:
    """Return the chosen frames, and whether the source is a still image."""
    if hasattr(source, "convert"):  # a PIL image
        return _read_animation(source, choose, limits, name), _count_images(source, limits, name) == 1
    file = open_encoded(source, name)
    try:
        file, header = _rewind(file, limits, name)
        if not (header.startswith(_IMAGE_MAGIC) or (header[:4] == b"RIFF" and header[8:] == b"WEBP")):
            return _read_video(file, choose, limits, name), False
        data = read_encoded(file, name, limits.frame.max_encoded_bytes)
        image = open_image(data, name, limits.frame)
        if _count_images(image, limits, name) == 1:
            return _pick_frames([data], choose, exif, limits), True
        return _read_animation(image, choose, limits, name), False
    finally:
        if not hasattr(source, "read"):
            file.close()


def _rewind(file: IO[bytes], limits: VideoLimits, name: str) -> tuple[IO[bytes], bytes]:
    """The file at its start, and its first 12 bytes; a pipe is read into memory."""
    try:
        size = file.seek(0, os.SEEK_END)
    except (AttributeError, OSError, ValueError):
        file = io.BytesIO(read_encoded(file, name, limits.max_encoded_bytes))
        size = 0
    if size > limits.max_encoded_bytes:
        raise VideoError(f"{name}: more than {limits.max_encoded_bytes} bytes")
    file.seek(0)
    header = file.read(12)
    file.seek(0)
    return file, header


def _read_animation(
    image: PIL.Image.Image, choose: Callable[[int], list[int]], limits: VideoLimits, name: str
) -> list[PIL.Image.Image]:
    """Frames of a GIF, WebP or APNG through Pillow."""
    indices = choose(_count_images(image, limits, name))
    loaded = {}
    for index in sorted(set(indices)):
        with _decoding(name):
            image.seek(index)
            frame = image.copy()
        loaded[index] = load_image(frame, limits=limits.frame)
    return [loaded[index] for index in indices]


def _count_images(image: PIL.Image.Image, limits: VideoLimits, name: str) -> int:
    with _decoding(name):
        total = getattr(image, "n_frames", 1)
    _check_count(total, limits, name)
    return total


def _read_video(
    file: IO[bytes], choose: Callable[[int], list[int]], limits: VideoLimits, name: str
) -> list[PIL.Image.Image]:
    """Frames of a video file through PyAV: counts packets, then decodes up to the last frame wanted."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise VideoError(f'{name}: reading a video file needs PyAV: pip install "gitfast[video]"') from None
    indices = choose(_count_packets(file, limits, name))
    frames, decoded = _decode_frames(file, set(indices), limits, name)
    if len(frames) < len(set(indices)):  # fewer frames than packets: now their number is known
        indices = choose(decoded)
        frames, _ = _decode_frames(file, set(indices), limits, name)
    return [load_image(frames[index], limits=limits.frame) for index in indices]


def _count_packets(file: IO[bytes], limits: VideoLimits, name: str) -> int:
    """Frames, counted by their packets: the header's number may be missing or wrong."""
    with _decoding(name), _open_container(file, limits) as container:
        stream = _video_stream(container, limits, name)
        _check_seconds((container.duration or 0) / 1e6, limits, name)
        total, first = 0, None
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet at the end
                continue
            total += 1
            _check_count(total, limits, name)
            if packet.pts is not None and stream.time_base is not None:
                first = packet.pts if first is None else first
                _check_seconds(float((packet.pts - first) * stream.time_base), limits, name)
        return total


def _decode_frames(
    file: IO[bytes], wanted: set[int], limits: VideoLimits, name: str
) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames as uint8 (H, W, 3), and how many were decoded until the last of them."""
    frames: dict[int, np.ndarray] = {}
    count = 0
    with _decoding(name), _open_container(file, limits) as container:
        for frame in container.decode(_video_stream(container, limits, name)):
            if count in wanted:
                limits.frame.check_size((frame.width, frame.height), name)
                turns = round(frame.rotation / 90) % 4  # how the camera was held, as EXIF in photographs
                frames[count] = np.rot90(frame.to_ndarray(format="rgb24"), turns)
            count += 1
            if len(frames) == len(wanted):
                break
            _check_count(count, limits, name)
    return frames, count


def _open_container(file: IO[bytes], limits: VideoLimits) -> Any:
    import av

    file.seek(0)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _CONTAINERS,
        "codec_whitelist": _CODECS,
        "max_pixels": str(limits.frame.max_pixels),
    }
    return av.open(file, mode="r", options=options, metadata_errors="replace")


def _video_stream(container: Any, limits: VideoLimits, name: str) -> Any:
    """The first video stream, its codec and frame size checked."""
    if not container.streams.video:
        raise VideoError(f"{name}: holds no video stream")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None or codec.name not in _CODECS.split(","):
        raise VideoError(f"{name}: its codec is not one of {_CODECS}")
    limits.frame.check_size((codec.width, codec.height), name)
    codec.options = {"max_pixels": str(limits.frame.max_pixels)}  # where the size changes on the way
    codec.thread_type = "AUTO"
    return stream


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Decoders raise anything on hostile bytes, and their messages may hold addresses."""
    try:
        yield
    except ImageError:
        raise
    except Exception:
        raise VideoError(f"{name}: not a video, or its data is damaged or truncated") from None


def _check_count(total: int, limits: VideoLimits, name: str) -> None:
    if total > limits.max_source_frames:
        raise VideoError(f"{name}: more than {limits.max_source_frames} frames")


def _check_seconds(seconds: float, limits: VideoLimits, name: str) -> None:
    if seconds > limits.max_seconds:
        raise VideoError(f"{name}: lasts {seconds:.1f} s; at most {limits.max_seconds:g} s are read")
