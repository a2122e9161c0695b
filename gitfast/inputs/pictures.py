"""``load_image``: a path, bytes, a file object, a PIL image, an array or a tensor as an upright RGB picture.

Every source is taken as hostile: limits are checked before anything is decoded, nothing but Pillow's decoders of
the listed formats runs, and every fault is an ``ImageError`` that names the input.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gitfast.errors import ImageError
from gitfast.inputs.decoder_warnings import held_back
from gitfast.inputs.files import describe_source, encoded_size, is_stateless, open_encoded, read_encoded
from gitfast.inputs.formats import FORMATS, Claim, clean_png, inspect, sniff
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.reading import BUDGET

if TYPE_CHECKING:
    import PIL.Image
    import torch

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | IO[bytes] | Mapping[str, Any] | PIL.Image.Image | np.ndarray | torch.Tensor"
)
# The least (width, height) that a picture of a (width, height) is wanted in.
LeastSize: TypeAlias = Callable[[tuple[int, int]], tuple[int, int]]

_ORIENTATION_TAG = 0x0112  # EXIF
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_CHANNELS = (1, 3, 4)
_PIXEL_BYTES = 8  # Pillow keeps 4 for most modes; its RGB copy has 4 more
_SCAN_PIXEL_BYTES = 6  # coefficients of a progressive JPEG, 2 for each sample
_STRIP_PIXELS = 1 << 20  # composited at a time
# Modes whose numbers have a range: "I" and "F" hold any integer or float, and nothing says which is white.
_MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def load_image(source: ImageSource, *, exif: bool = True, limits: Limits = DEFAULT_LIMITS) -> PIL.Image.Image:
    """Load an upright RGB picture, transparency composited on white, 16-bit grey reduced to its high byte.

    Args:
        source: A path; encoded bytes; a binary file object; ``{"bytes": ..., "path": ...}``, one of which may be None;
            a PIL image; a uint8 or uint16 array or torch tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
            channels. If both ends fit, the channels of an array are last, those of a tensor first. Only the first
            frame of an animation is read. URLs are never fetched.
        exif: Rotate encoded images as their EXIF orientation says. PIL images and arrays are taken as they are.
        limits: Limits on the image's cost.

    Raises:
        ImageError: the source cannot be read, is damaged, is not of one of ``FORMATS``, exceeds a limit, or has
            numbers without a defined range (32-bit integers, floats).
    """
    with loading(source, exif=exif, limits=limits) as (picture, _):
        return picture


@contextmanager
def loading(
    source: ImageSource, *, exif: bool = True, limits: Limits = DEFAULT_LIMITS, least: LeastSize | None = None
) -> Iterator[tuple[PIL.Image.Image, tuple[int, int]]]:
    """Do ``load_image`` for a ``with`` block, which ends when the picture is not needed any more.

    Until then its bytes count against ``limits.max_decoding_bytes``; no other picture is to be loaded in the block.

    Args:
        source, exif, limits: As in ``load_image``.
        least: Decode JPEGs reduced by 2, 4 or 8 where that leaves at least this size: faster, and not exact.

    Yields:
        The picture, and the (width, height) that it has when it is not reduced.
    """
    name = describe_source(source)
    with held_back(name), _loading(source, name, exif, limits, least) as result:
        yield result


@contextmanager
def _loading(
    source: ImageSource, name: str, exif: bool, limits: Limits, least: LeastSize | None
) -> Iterator[tuple[PIL.Image.Image, tuple[int, int]]]:
    pixels = as_array(source, name)
    if pixels is not None:
        _check_array(pixels, name, limits)
        _warn_of_two_readings(source, name)
        with BUDGET.decoding(2 * pixels.nbytes, limits.max_decoding_bytes):
            picture = array_to_rgb(pixels, name)
            yield picture, picture.size
    elif isinstance(source, pillow().Image):
        check_image(source, name, limits)
        cost = _PIXEL_BYTES * source.width * source.height
        with BUDGET.decoding(cost, limits.max_decoding_bytes):
            picture = to_rgb(source, name)
            yield picture, picture.size
    else:
        file = open_encoded(source, name)
        try:
            with BUDGET.reading(encoded_size(file), limits.max_decoding_bytes):
                data = read_encoded(file, name, limits.max_image_bytes, "max_image_bytes")
                with decoded(data, name, exif, limits, least) as result:
                    yield result
        finally:
            if file is not source:
                file.close()


@contextmanager
def decoded(
    data: bytes, name: str, exif: bool, limits: Limits, least: LeastSize | None = None
) -> Iterator[tuple[PIL.Image.Image, tuple[int, int]]]:
    """Do ``loading`` for encoded bytes."""
    image, claim = open_image(data, name, limits)
    full_size = _reduce(image, exif, least) if least is not None and image.format in ("JPEG", "MPO") else None
    pixel_bytes = _PIXEL_BYTES + (_SCAN_PIXEL_BYTES if claim.scans > 1 else 0)
    with BUDGET.decoding(pixel_bytes * image.width * image.height, limits.max_decoding_bytes):
        with decoding(name, _damage(image)):
            image.load()
            picture = _upright(image) if exif else image
        picture = to_rgb(picture, name)
        yield picture, full_size or picture.size


def _reduce(image: PIL.Image.Image, exif: bool, least: LeastSize) -> tuple[int, int]:
    """Have a JPEG decoded smaller, but no smaller than wanted; return its upright (width, height) before."""
    turned = exif and _orientation(image) in _TURNED
    size = image.size[::-1] if turned else image.size
    wanted = least(size)
    image.draft(None, wanted[::-1] if turned else wanted)
    return size


def open_image(data: bytes, name: str, limits: Limits, *, frames: bool = False) -> tuple[PIL.Image.Image, Claim]:
    """Open encoded bytes as a PIL image, its cost checked and its pixels not decoded yet; return its claims too.

    Args:
        frames: True if later frames of an animation are to be decoded, too.

    Raises:
        ImageError: not an image of one of ``FORMATS``, or more than the limits allow.
    """
    image_format = sniff(data)
    refusal = f"not an image, or not of a supported format ({', '.join(FORMATS)})"
    if image_format is None:
        raise ImageError(f"{name}: {refusal}")
    claim = inspect(data, image_format, name, limits, frames=frames)
    if image_format == "PNG":
        data = clean_png(data, name)
    with decoding(name, refusal):
        # Not through Image.open, whose own limit is a setting of the application.
        image = _openers()[image_format](io.BytesIO(data), "")
    limits.check_size(image.size, name)
    return image, claim


def check_image(image: PIL.Image.Image, name: str, limits: Limits) -> None:
    """Refuse a PIL image that costs too much; check one that was opened lazily by its file too.

    Raises:
        ImageError: the image exceeds a limit, or was closed.
    """
    check_open(image, name)
    limits.check_size(image.size, name)
    file: Any = getattr(image, "fp", None)
    walked = {"JPEG": "JPEG", "MPO": "JPEG", "TIFF": "TIFF"}.get(image.format or "")
    if walked == "TIFF" and image.mode != "1":  # fax-coded pages have one bit a pixel
        walked = None
    if walked is not None and getattr(image, "tile", None) and hasattr(file, "seek"):
        with decoding(name, "its file cannot be read"):
            place = file.tell()
            file.seek(0)
            data = read_encoded(file, name, limits.max_image_bytes, "max_image_bytes")
            file.seek(place)
        inspect(data, walked, name, limits, frames=image.tell() > 0)


def check_open(image: PIL.Image.Image, name: str) -> None:
    """Refuse a PIL image whose pixels are gone."""
    try:
        _ = image.im
    except ValueError:
        raise ImageError(
            f"{name}: a PIL image that was closed; use it before its file is closed, or load() it"
        ) from None
    except Exception:  # not decoded yet
        return


def detach(source: Any, limits: Limits) -> Any:
    """Return a source that threads may read side by side: read or decode one that shares its file now.

    Raises:
        ImageError: it cannot be read.
    """
    name = describe_source(source)
    if as_array(source, name) is not None or is_stateless(source):
        return source
    if isinstance(source, pillow().Image):
        check_image(source, name, limits)
        with decoding(name, _damage(source)):
            source.load()
        return source
    return read_encoded(open_encoded(source, name), name, limits.max_image_bytes, "max_image_bytes")


@cache
def pillow() -> ModuleType:
    """Return ``PIL.Image`` with the plugins of the allowed formats only."""
    from PIL import Image as module

    _openers()
    return module


@cache
def _openers() -> dict[str, Callable[[IO[bytes], str], PIL.Image.Image]]:
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    return {
        "JPEG": JpegImagePlugin.jpeg_factory,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }


@contextmanager
def decoding(name: str, fault: str) -> Iterator[None]:
    """Turn whatever Pillow raises on hostile bytes into an ``ImageError``; its messages may hold addresses."""
    with held_back(name):
        try:
            yield
        except ImageError:
            raise
        except MemoryError:
            raise ImageError(f"{name}: not enough memory to decode it") from None
        except Exception as error:
            if type(error).__name__ == "DecompressionBombError":
                fault = "more pixels than PIL.Image.MAX_IMAGE_PIXELS allows Pillow to decode"
            raise ImageError(f"{name}: {fault}") from None


def _damage(image: PIL.Image.Image) -> str:
    return f"damaged or truncated {image.format or 'image'} data"


def _orientation(image: PIL.Image.Image) -> int:
    try:
        with held_back(None):
            return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    transpose = pillow().Transpose
    methods = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    method = methods.get(_orientation(image))
    return image if method is None else image.transpose(method)


def as_array(source: Any, name: str) -> np.ndarray | None:
    """Return the numbers of an array or a torch tensor, channels last; None for a source of another kind.

    Raises:
        ImageError: a tensor that has no numbers in memory.
    """
    first = False
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        try:
            source = source.detach().cpu().numpy()
        except Exception:  # bfloat16, sparse, quantized, meta
            raise ImageError(f"{name}: expected a uint8 tensor, got {source.dtype} ({source.layout})") from None
        first = True
    if not isinstance(source, np.ndarray):
        return None
    if source.ndim in (3, 4):
        ends = (source.shape[-3] in _CHANNELS, source.shape[-1] in _CHANNELS)
        if ends == (True, False) or (ends[0] and first):
            return np.moveaxis(source, -3, -1)
    return source


def _check_array(array: np.ndarray, name: str, limits: Limits) -> None:
    if array.dtype not in (np.uint8, np.uint16) or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    ):
        hint = "; scale floats to 0..255" if np.issubdtype(array.dtype, np.floating) else ""
        raise ImageError(
            f"{name}: expected uint8 of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, "
            f"got {array.dtype} of shape {array.shape}{hint}"
        )
    limits.check_size((array.shape[1], array.shape[0]), name)


def _warn_of_two_readings(source: Any, name: str) -> None:
    shape = source.shape
    if isinstance(source, np.ndarray) and len(shape) == 3 and shape[0] in _CHANNELS and shape[2] in _CHANNELS:
        warnings.warn(f"{name}: shape {shape} is taken as channels last; it may be channels first", stacklevel=2)


def array_to_rgb(array: np.ndarray, name: str) -> PIL.Image.Image:
    """Make an RGB picture from uint8 or uint16 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), with alpha last."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    return to_rgb(pillow().fromarray(np.ascontiguousarray(array)), name)


def to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Convert any PIL image to RGB, on white where it is transparent; return one that is RGB as it is.

    Raises:
        ImageError: it is damaged, or of a mode without a defined range.
    """
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise ImageError(
            f"{name}: numbers of mode {image.mode} have no defined range; scale them to 0..255 and convert to L or RGB"
        )
    with decoding(name, _damage(image)):
        image.load()
        if image.mode.startswith("I;16"):
            image = _high_bytes(image)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """Composite strip by strip, as whole pictures would take three copies of four bytes a pixel."""
    module = pillow()
    picture = module.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = module.new("RGBA", strip.size, (255, 255, 255, 255))
        picture.paste(module.alpha_composite(white, strip).convert("RGB"), (0, top))
    return picture


def _high_bytes(image: PIL.Image.Image) -> PIL.Image.Image:
    """Reduce 16-bit grey to its high byte, as Pillow reads 16-bit colour; converting would clip to white."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))
    levels = np.asarray(image)
    grey = (levels >> (4 if bits == (12,) else 8)).astype(np.uint8)
    if tags.get(262) == 0:  # white is zero, which Pillow applies to 8 bits only
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is None:
        return pillow().fromarray(grey)
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8)
    return pillow().fromarray(np.stack([grey, alpha], -1), "LA")
