"""Clips: a few frames of a video, chosen from frames at hand, an animated image, or a video file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from gitfast.errors import ImageError, VideoError
from gitfast.inputs.decoder_warnings import held_back
from gitfast.inputs.files import describe_source, open_encoded, read_encoded, read_start, seekable
from gitfast.inputs.formats import Claim, sniff
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.pictures import (
    as_array,
    check_image,
    check_open,
    decoded,
    decoding,
    loading,
    open_image,
    pillow,
    to_rgb,
)
from gitfast.inputs.reading import BUDGET
from gitfast.inputs.video_files import check_count, read_video

if TYPE_CHECKING:
    import PIL.Image

    from gitfast.inputs.pictures import ImageSource

VideoSource: TypeAlias = "ImageSource | Sequence[ImageSource]"
Sampling: TypeAlias = Literal["uniform", "hf"] | Sequence[int] | Callable[[int], Iterable[int]]
T = TypeVar("T")
Choose: TypeAlias = Callable[[int], list[int]]  # from the number of frames to those wanted
Prepare: TypeAlias = "Callable[[PIL.Image.Image], T]"  # from a frame to its prepared form

_VIDEO_MAGIC = (b"\x1aE\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"OggS", b"FLV\x01", b"0&\xb2u")
_PIXEL_BYTES = 16  # per pixel of an animation: its canvas, the frame on it, and the copy in use


def sample_indices(
    total: int,
    num_frames: int,
    sampling: Sampling = "uniform",
    seed: int = 0,
    max_frames: int = DEFAULT_LIMITS.max_clip_frames,
) -> list[int]:
    """Choose which of ``total`` frames make a clip.

    Args:
        total: Frames of the source.
        num_frames: Frames of the clip.
        sampling: "uniform" takes the middle of ``num_frames`` equal parts, repeating frames of a shorter source.
            "hf" is the sampling of transformers' GIT documentation: a random window of 4 x num_frames frames.
            Or the indices themselves, or a function from ``total`` to them.
        seed: Seed of the random window: the same as after ``np.random.seed(seed)``.
        max_frames: The most that a clip may have.

    Raises:
        VideoError: no frames or too many, a window longer than the source, or an index outside it.
    """
    if num_frames > max_frames:
        raise VideoError(f"num_frames: at most {max_frames} frames are kept, got {num_frames} (max_clip_frames)")
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
    chosen = sampling(total) if callable(sampling) else sampling
    try:
        indices = [int(i) for i in itertools.islice(chosen, max_frames + 1)]
    except (TypeError, ValueError, OverflowError):
        raise VideoError(f"sampling: expected indices from 0 to {total - 1}, got {chosen!r:.200}") from None
    if len(indices) > max_frames:
        raise VideoError(f"sampling: at most {max_frames} frames are kept, got more (max_clip_frames)")
    if not indices or min(indices) < 0 or max(indices) >= total:
        raise VideoError(f"sampling: expected indices from 0 to {total - 1}, got {indices}")
    return indices


def load_clip(source: VideoSource, **options: Any) -> list[PIL.Image.Image]:
    """Load the frames of one clip as upright RGB pictures. Arguments and errors as those of ``read_clip``."""
    return read_clip(source, lambda picture: picture, **options)


def read_clip(
    source: VideoSource,
    prepare: Prepare[T],
    *,
    num_frames: int = 6,
    sampling: Sampling = "uniform",
    seed: int = 0,
    exif: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    repeat_stills: bool = True,
) -> list[T]:
    """Read the frames of one clip; each is prepared as soon as it is read, and not held any longer.

    Args:
        source: A list of frames (each anything ``load_image`` takes), a uint8 array or tensor (T, H, W, C) or
            (T, C, H, W), an animated image, or a video as path, bytes, ``{"bytes": ..., "path": ...}`` or binary file
            object.
        prepare: Applied to each frame, an upright RGB picture.
        num_frames, sampling, seed: As in ``sample_indices``.
        exif: For encoded images, as in ``load_image``.
        limits: Limits on the video's cost.
        repeat_stills: Take a still image as a clip that does not move; otherwise it is an error.

    Raises:
        VideoError: the source cannot be read or exceeds a limit; or it is a video file and PyAV is not installed.
    """

    def choose(total: int) -> list[int]:
        return sample_indices(total, num_frames, sampling, seed, limits.max_clip_frames)

    name = describe_source(source)
    frames: Any = as_array(source, name)
    if frames is None and isinstance(source, (list, tuple)):
        frames = source
    elif frames is not None and frames.ndim != 4:
        if not repeat_stills and frames.ndim in (2, 3):
            raise _still_error(name, num_frames)
        raise VideoError(f"expected an array of shape (T, H, W, 3), got {frames.shape}")
    if frames is not None:
        return _read_list(frames, choose, prepare, exif, limits)
    try:
        with held_back(name):
            prepared, still = _read_source(source, choose, prepare, exif, limits, name)
    except ImageError as error:
        message = str(error)
        raise VideoError(message if message.startswith(name) else f"{name}: {message}") from None
    if still and not repeat_stills:
        raise _still_error(name, num_frames)
    return prepared


def looks_like_video(source: Any) -> bool:
    """Tell by its first bytes whether a path, bytes or seekable file is a video file. An unreadable one is not."""
    try:
        file = open_encoded(source, "video")
    except ImageError:
        return False
    try:
        header = read_start(file)
    except Exception:  # a file object of the user may raise anything
        return False
    finally:
        if file is not source:
            file.close()
    return header.startswith(_VIDEO_MAGIC) or header[4:8] == b"ftyp" or (header[:4], header[8:]) == (b"RIFF", b"AVI ")


def _still_error(name: str, num_frames: int) -> VideoError:
    return VideoError(
        f"{name}: a single image, and the model reads clips of {num_frames} frames: pass a video or a list of frames "
        "(of one, [image], it repeats), or load a model of images such as git-base-coco"
    )


def _read_list(
    frames: Sequence[Any] | np.ndarray, choose: Choose, prepare: Prepare[T], exif: bool, limits: Limits
) -> list[T]:
    """Read the chosen ones of frames at hand, each once."""
    indices = choose(len(frames))
    prepared = {}
    for index in sorted(set(indices)):
        try:
            with loading(frames[index], exif=exif, limits=limits) as (picture, _):
                prepared[index] = prepare(picture)
        except ImageError as error:
            raise VideoError(f"frames[{index}]: {error}") from None
    return [prepared[index] for index in indices]


def _read_source(
    source: Any, choose: Choose, prepare: Prepare[T], exif: bool, limits: Limits, name: str
) -> tuple[list[T], bool]:
    """Return the chosen frames, and whether the source is a still image."""
    if isinstance(source, pillow().Image):
        return _read_image(source, choose, prepare, limits, name)
    file = open_encoded(source, name)
    try:
        reader = seekable(file, name, limits.max_video_bytes, "max_video_bytes")
        image_format = sniff(read_start(reader))
        if image_format is None:
            return read_video(reader, choose, prepare, limits, name), False
        data = read_encoded(reader, name, limits.max_image_bytes, "max_image_bytes")
        return _read_encoded(data, choose, prepare, exif, limits, name)
    finally:
        if file is not source:
            file.close()


def _read_image(
    image: PIL.Image.Image, choose: Choose, prepare: Prepare[T], limits: Limits, name: str
) -> tuple[list[T], bool]:
    """Read a PIL image, or its file if it was opened lazily: there the frames can be counted at a bounded cost."""
    check_open(image, name)
    file: Any = getattr(image, "_fp", None) or getattr(image, "fp", None)
    animated = image.format in ("GIF", "TIFF") or (image.format == "PNG" and getattr(image, "is_animated", False))
    if animated and hasattr(file, "seek"):
        with decoding(name, "its file cannot be read"):
            place = file.tell()
            data = read_encoded(file, name, limits.max_image_bytes, "max_image_bytes")
            file.seek(place)
        return _read_encoded(data, choose, prepare, False, limits, name)
    if image.format == "WEBP" and getattr(image, "n_frames", 1) > 1:
        check_image(image, name, limits)
        return _read_animation(image, Claim(frames=None), choose, prepare, limits, name), False
    return _repeat(loading(image, exif=False, limits=limits), choose, prepare)


def _read_encoded(
    data: bytes, choose: Choose, prepare: Prepare[T], exif: bool, limits: Limits, name: str
) -> tuple[list[T], bool]:
    """Read an encoded image: an animation, or a still picture."""
    image, claim = open_image(data, name, limits, frames=True)
    if claim.frames != 1 and _count(image, claim, limits, name) > 1:
        return _read_animation(image, claim, choose, prepare, limits, name), False
    return _repeat(decoded(data, name, exif, limits), choose, prepare)


def _repeat(
    still: AbstractContextManager[tuple[PIL.Image.Image, Any]], choose: Choose, prepare: Prepare[T]
) -> tuple[list[T], bool]:
    """Repeat a still picture: every frame is the same."""
    indices = choose(1)
    with still as (picture, _):
        prepared = prepare(picture)
    return [prepared for _ in indices], True


def _count(image: PIL.Image.Image, claim: Claim, limits: Limits, name: str) -> int:
    total = claim.frames
    if total is None:
        with decoding(name, "damaged or truncated data"):
            total = getattr(image, "n_frames", 1)
    check_count(total, limits, name)
    return total


def _read_animation(
    image: PIL.Image.Image, claim: Claim, choose: Choose, prepare: Prepare[T], limits: Limits, name: str
) -> list[T]:
    """Read frames of a GIF, WebP or APNG, or pages of a TIFF, through Pillow."""
    indices = choose(_count(image, claim, limits, name))
    size = claim.size or image.size
    # Frames are drawn one upon another; pages stand alone.
    steps = len(set(indices)) if image.format == "TIFF" else max(indices) + 1
    limits.check_decoded(size, steps, "frames", name)
    prepared = {}
    with BUDGET.decoding(_PIXEL_BYTES * size[0] * size[1], limits.max_decoding_bytes):
        for index in sorted(set(indices)):
            with decoding(name, "damaged or truncated data"):
                image.seek(index)
                limits.check_size(image.size, name)
                frame = image.copy()
            prepared[index] = prepare(to_rgb(frame, name))
    return [prepared[index] for index in indices]
