"""Images: from a path, bytes, a file object, a PIL image or an array to the pixels a model reads.

Two steps. ``load_image`` gives an upright RGB picture and treats whatever it reads as hostile: limits are checked
before anything is decoded. ``ImageProcessor`` resizes, crops and normalises it, bit for bit as the Pillow back end
of transformers' ``CLIPImageProcessor`` and ``VideoMAEImageProcessor`` does. Neither needs torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from gitfast.checkpoints.config import GitConfig, read_json
from gitfast.errors import ConfigError, ImageError
from gitfast.types import Normalization

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | np.ndarray"

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)  # of the published video checkpoints

_ORIENTATION_TAG = 0x0112  # EXIF
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_MAX_EDGE = 4096
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]+://|data:")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may cost. A file is refused on its header, before its pixels are decoded or resized."""

    max_encoded_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_aspect_ratio: float = 50.0  # a 10000 x 2 image would be resized to 1120000 x 224

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Raises ``ImageError`` when an image of this (width, height) must not be processed."""
        width, height = size
        if width < 1 or height < 1:
            raise ImageError(f"{name}: {width} x {height} pixels; an image has at least 1 x 1")
        if width * height > self.max_pixels:
            raise ImageError(f"{name}: {width} x {height} pixels; at most {self.max_pixels} are allowed")
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise ImageError(
                f"{name}: {width} x {height} pixels; the longer side may be at most {self.max_aspect_ratio:g} times "
                "the shorter"
            )


DEFAULT_LIMITS = ImageLimits()


def load_image(source: ImageSource, *, exif: bool = True, limits: ImageLimits = DEFAULT_LIMITS) -> PIL.Image.Image:
    """An upright RGB picture, transparency composited on white.

    Args:
        source: A path, encoded bytes, a binary file object, a PIL image, or a uint8 array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4). Only the first frame of an animation is read. URLs are never fetched.
        exif: Rotate encoded images as their EXIF orientation says. PIL images and arrays are taken as they are.
        limits: What the image may cost.

    Raises:
        ImageError: the source cannot be read, is damaged, is not of one of ``FORMATS``, or exceeds a limit.
    """
    name = describe_source(source)
    pillow = _pillow()
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name, limits), name)
    if isinstance(source, pillow.Image):
        limits.check_size(source.size, name)
        return _to_rgb(source, name)
    image = open_image(read_encoded(source, name, limits.max_encoded_bytes), name, limits)
    return _to_rgb(_decode(image, name, exif), name)


def describe_source(source: object) -> str:
    """How error messages name an image or video source."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)[:500]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "encoded bytes"
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return name[:500] if isinstance(name, str) else "file object"
    return "image array" if isinstance(source, np.ndarray) else "image"


def open_encoded(source: Any, name: str) -> IO[bytes]:
    """A path, bytes or binary file object as a readable binary file. The caller closes what was a path."""
    if isinstance(source, str) and _URL.match(source):
        raise ImageError(f"{name}: looks like a URL; URLs are never fetched, pass a path or the downloaded bytes")
    if isinstance(source, (str, os.PathLike)):
        try:
            return open(source, "rb")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise ImageError(f"{name}: {getattr(error, 'strerror', None) or 'not a valid path'}") from None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        return source
    raise ImageError(
        f"{name}: expected a path, bytes, a binary file object, a PIL image or a uint8 array, "
        f"got {type(source).__name__}"
    )


def read_encoded(source: Any, name: str, max_bytes: int) -> bytes:
    """All bytes of a path, bytes or file object (from its start, when it can seek), at most ``max_bytes``."""
    file = open_encoded(source, name)
    try:
        if file is source and hasattr(file, "seek"):
            with contextlib.suppress(OSError, ValueError):  # a pipe cannot
                file.seek(0)
        data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or 'cannot be read'}") from None
    finally:
        if file is not source:
            file.close()
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: expected a file opened in binary mode")
    if len(data) > max_bytes:
        raise ImageError(f"{name}: more than {max_bytes} bytes")
    return data


@cache
def _pillow() -> ModuleType:
    # The plugins of the allowed formats only; Pillow would import all of them on the first WebP or unknown file.
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
    from PIL import Image as module

    del BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
    return module


def open_image(data: bytes, name: str, limits: ImageLimits) -> PIL.Image.Image:
    """Encoded bytes as a PIL image whose format and size are checked and whose pixels are not decoded yet."""
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(data), formats=FORMATS)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise ImageError(f"{name}: at most {limits.max_pixels} pixels are allowed") from None
    except Exception:  # decoders raise anything on hostile bytes, and their messages may hold addresses
        raise ImageError(f"{name}: not an image, or not of a supported format ({', '.join(FORMATS)})") from None
    limits.check_size(image.size, name)
    return image


def _decode(image: PIL.Image.Image, name: str, exif: bool) -> PIL.Image.Image:
    try:
        image.load()
        upright = _upright(image) if exif else image
        return _scale_16_bit(upright)
    except Exception:
        raise ImageError(f"{name}: damaged or truncated {image.format} data") from None


def _scale_16_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit grey files to 8 bit by their high byte, as Pillow reads 16-bit colour; converting would clip to white."""
    if not image.mode.startswith("I;16"):
        return image
    return _pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    transpose = _pillow().Transpose
    methods = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    try:
        method = methods.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        method = None
    return image if method is None else image.transpose(method)


def _from_array(array: np.ndarray, name: str, limits: ImageLimits) -> PIL.Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: expected uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"got {array.dtype} of shape {array.shape}"
        )
    limits.check_size((array.shape[1], array.shape[0]), name)
    return _pillow().fromarray(np.ascontiguousarray(array))


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    pillow = _pillow()
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            image.load()
            return image
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
            image = pillow.alpha_composite(white, image)
        return image.convert("RGB")
    except Exception:
        raise ImageError(f"{name}: damaged, or its mode {image.mode} cannot become RGB") from None


def map_in_threads(function: Callable[[T], Any], items: Sequence[T], num_threads: int | None = None) -> list[Any]:
    """``function`` of every item, in order. Pillow releases the GIL, so images are worked on side by side."""
    threads = min(len(items), num_threads or min(8, os.cpu_count() or 1))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, "gitfast-image") as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Settings of the way from an RGB picture to pixels; calling it applies them. Defaults: ``microsoft/git-base``.

    Attributes:
        size: An int resizes the shorter edge to it, a pair resizes to exactly (height, width), None keeps the size.
        max_size: With an int ``size``: where the longer edge would exceed this, both shrink to respect it.
        resample: Pillow's filter: nearest, lanczos, bilinear, bicubic, box or hamming.
        crop_size: (height, width) cut from the centre, zero-padded where the image is smaller; None keeps all.
        crop_rounding: How an odd margin is halved: transformers floors, torchvision rounds half to even.
        rescale_factor: Multiplies the pixel values 0..255.
        image_mean, image_std: Per channel, in rescaled units; None does not normalise.
        processor_type: The transformers class these settings belong to; names the file written by ``to_dict``.
    """

    size: int | tuple[int, int] | None = 224
    max_size: int | None = None
    resample: str = "bicubic"
    crop_size: tuple[int, int] | None = (224, 224)
    crop_rounding: Literal["floor", "round"] = "floor"
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] | None = CLIP_MEAN
    image_std: tuple[float, float, float] | None = CLIP_STD
    processor_type: Literal["CLIPImageProcessor", "VideoMAEImageProcessor"] = "CLIPImageProcessor"

    @classmethod
    def for_config(cls, config: GitConfig) -> ImageProcessor:
        """The settings of the published checkpoint with this configuration, for folders that hold none."""
        edge = config.vision_config.image_size
        square = cls(size=edge, crop_size=(edge, edge))
        if not config.is_video:
            return square
        return dataclasses.replace(
            square, resample="bilinear", image_mean=_HALF, image_std=_HALF, processor_type="VideoMAEImageProcessor"
        )

    @classmethod
    def original(cls, config: GitConfig) -> ImageProcessor:
        """What Microsoft's own code does, which differs from the published processor files.

        Question answering checkpoints (images larger than 224) keep the aspect ratio: the shorter edge becomes
        image_size, the longer at most 4/3 of it, nothing is cropped. Video frames use CLIP's statistics and bicubic.
        """
        edge = config.vision_config.image_size
        if edge > 224:
            return cls(size=edge, max_size=edge * 4 // 3, crop_size=None)
        return cls(size=edge, crop_size=(edge, edge), crop_rounding="round")

    @classmethod
    def from_file(cls, path: str | Path) -> ImageProcessor:
        """Read ``preprocessor_config.json``, or the image part of a ``processor_config.json``. Errors name the file."""
        path = Path(path)
        values = read_json(path)
        if isinstance(values.get("image_processor"), Mapping):
            values = values["image_processor"]
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageProcessor:
        """Build from a ``preprocessor_config.json`` mapping; missing keys and null take transformers' defaults.

        Images always become RGB, whatever ``do_convert_rgb`` says: the models have three channels.

        Raises:
            ConfigError: a value cannot be, or the file is for a processor of another kind.
        """
        values = {key: value for key, value in values.items() if value is not None}
        kind = _processor_type(values)
        if values.get("do_pad"):
            raise ConfigError("do_pad: padding is not supported")
        video = kind == "VideoMAEImageProcessor"
        size, max_size = _parse_size(values.get("size", 224)) if _flag(values, "do_resize") else (None, None)
        crop_size = _parse_crop(values.get("crop_size", 224)) if _flag(values, "do_center_crop") else None
        mean = _parse_triple(values, "image_mean", _HALF if video else CLIP_MEAN)
        std = _parse_triple(values, "image_std", _HALF if video else CLIP_STD)
        if 0.0 in std:
            raise ConfigError(f"image_std: expected no zero, got {std}")
        factor = values.get("rescale_factor", 1 / 255) if _flag(values, "do_rescale") else 1.0
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
            raise ConfigError(f"rescale_factor: expected a number, got {factor!r}")
        normalize = _flag(values, "do_normalize")
        return cls(
            size=size,
            max_size=max_size,
            resample=_parse_resample(values.get("resample", 2 if video else 3)),
            crop_size=crop_size,
            rescale_factor=float(factor),
            image_mean=mean if normalize else None,
            image_std=std if normalize else None,
            processor_type=kind,
        )

    def to_dict(self) -> dict[str, Any]:
        """The ``preprocessor_config.json`` mapping of these settings."""
        size: dict[str, int] | None = None
        if isinstance(self.size, tuple):
            size = {"height": self.size[0], "width": self.size[1]}
        elif self.size is not None:
            size = {"shortest_edge": self.size}
            if self.max_size is not None:
                size["longest_edge"] = self.max_size
        crop = None if self.crop_size is None else {"height": self.crop_size[0], "width": self.crop_size[1]}
        normalize = self.image_mean is not None and self.image_std is not None
        values = {
            "image_processor_type": self.processor_type,
            "do_convert_rgb": True,
            "do_resize": size is not None,
            "size": size,
            "resample": _RESAMPLE.index(self.resample),
            "do_center_crop": crop is not None,
            "crop_size": crop,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": normalize,
            "image_mean": list(self.image_mean) if self.image_mean else None,
            "image_std": list(self.image_std) if self.image_std else None,
        }
        return {key: value for key, value in values.items() if value is not None}

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        exif: bool = True,
        limits: ImageLimits = DEFAULT_LIMITS,
        num_threads: int | None = None,
        normalize: bool = True,
    ) -> np.ndarray:
        """One image, a list of them or an array (B, H, W, 3) -> float32 (B, 3, H, W).

        Args:
            images: Each anything that ``load_image`` takes.
            exif, limits: As in ``load_image``.
            num_threads: Images decoded and resized at a time; None: as many as there are cores, at most 8.
            normalize: False leaves bytes, uint8 (B, H, W, 3), for an engine that knows this ``normalization``.

        Raises:
            ImageError: an image is bad (the message gives its index in a list), or without a crop the images end
                in different sizes and cannot be one array.
        """
        batch = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        sources: Sequence[Any] = list(images) if batch else [images]  # type: ignore[arg-type]
        if not sources:
            raise ImageError("images: expected at least one image, got an empty list")

        def load(index: int, source: Any) -> PIL.Image.Image:
            try:
                return load_image(source, exif=exif, limits=limits)
            except ImageError as error:
                raise error if len(sources) == 1 else type(error)(f"images[{index}]: {error}") from None

        # PIL images and file objects have state, and one may be listed twice: not to be loaded by two threads.
        stateless = (str, os.PathLike, bytes, np.ndarray)
        sources = [s if isinstance(s, stateless) else load(i, s) for i, s in enumerate(sources)]

        def preprocess(index: int) -> np.ndarray:
            return self.preprocess(load(index, sources[index]), normalize=normalize)

        pixels = map_in_threads(preprocess, range(len(sources)), num_threads)
        if len(pixels) == 1:
            return pixels[0][None]
        if len({p.shape for p in pixels}) > 1:
            sizes = [p.shape[1:] if normalize else p.shape[:2] for p in pixels]
            raise ImageError(f"images: these settings give different sizes: {sizes}")
        return np.stack(pixels)

    @property
    def normalization(self) -> Normalization:
        """What becomes of the bytes of a resized and cropped picture."""
        mean, std = self.image_mean, self.image_std
        if mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return Normalization(factor=self.rescale_factor, mean=mean, std=std)

    def preprocess(self, image: PIL.Image.Image, *, normalize: bool = True) -> np.ndarray:
        """One RGB picture, as ``load_image`` gives it -> float32 (3, H, W); not normalised, uint8 (H, W, 3)."""
        if self.size is not None:
            image = image.resize(self._resized(*image.size), getattr(_pillow().Resampling, self.resample.upper()))
        if self.crop_size is not None:
            image = self._crop(image)
        pixels = np.asarray(image)
        return self._normalize(pixels) if normalize else pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        assert self.size is not None
        short, long, edge = min(width, height), max(width, height), self.size
        if self.max_size is not None and long / short * edge > self.max_size:
            edge = max(1, round(self.max_size * short / long))
        new_long = int(edge * long / short)
        return (edge, new_long) if width <= height else (new_long, edge)

    def _crop(self, image: PIL.Image.Image) -> PIL.Image.Image:
        assert self.crop_size is not None
        height, width = self.crop_size
        if self.crop_rounding == "floor":
            top, left = (image.height - height) // 2, (image.width - width) // 2
        else:
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))  # zeros outside the image

    def _normalize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (3, H, W)."""
        pixels = np.empty((3, *image.shape[:2]), np.float32)
        # The product in float64, rounded once to float32, as transformers does.
        np.multiply(image.transpose(2, 0, 1), self.rescale_factor, out=pixels, dtype=np.float64, casting="unsafe")
        if self.image_mean is not None and self.image_std is not None:
            pixels -= np.array(self.image_mean, np.float32)[:, None, None]
            pixels /= np.array(self.image_std, np.float32)[:, None, None]
        return pixels


def _processor_type(values: Mapping[str, Any]) -> Literal["CLIPImageProcessor", "VideoMAEImageProcessor"]:
    """The kind of processor, from its present name or one it had: CLIPImageProcessorPil, CLIPFeatureExtractor, ..."""
    name = values.get("image_processor_type", values.get("feature_extractor_type", "CLIPImageProcessor"))
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name) if isinstance(name, str) else name
    if kind == "CLIP":
        return "CLIPImageProcessor"
    if kind == "VideoMAE":
        return "VideoMAEImageProcessor"
    raise ConfigError(f"image_processor_type: expected CLIPImageProcessor or VideoMAEImageProcessor, got {name!r}")


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, True)
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected true or false, got {value!r}")
    return value


def _edge(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_EDGE:
        raise ConfigError(f"{key}: expected pixels from 1 to {_MAX_EDGE}, got {value!r}")
    return value


def _parse_size(size: Any) -> tuple[int | tuple[int, int], int | None]:
    """``size`` and ``max_size`` from an int, [height, width], or a mapping with one of three sets of keys."""
    if isinstance(size, int):
        return _edge("size", size), None
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return (_edge("size[0]", size[0]), _edge("size[1]", size[1])), None
    keys = set(size) if isinstance(size, Mapping) else set()
    if keys == {"height", "width"}:
        return (_edge("size.height", size["height"]), _edge("size.width", size["width"])), None
    if keys == {"shortest_edge"}:
        return _edge("size.shortest_edge", size["shortest_edge"]), None
    if keys == {"shortest_edge", "longest_edge"}:
        return _edge("size.shortest_edge", size["shortest_edge"]), _edge("size.longest_edge", size["longest_edge"])
    raise ConfigError(
        "size: expected an integer, {'shortest_edge'}, {'shortest_edge', 'longest_edge'} or {'height', 'width'}, "
        f"got {size!r}"
    )


def _parse_crop(crop: Any) -> tuple[int, int]:
    if isinstance(crop, int):
        return (_edge("crop_size", crop),) * 2
    if isinstance(crop, (list, tuple)) and len(crop) == 2:
        return _edge("crop_size[0]", crop[0]), _edge("crop_size[1]", crop[1])
    if isinstance(crop, Mapping) and set(crop) == {"height", "width"}:
        return _edge("crop_size.height", crop["height"]), _edge("crop_size.width", crop["width"])
    raise ConfigError(f"crop_size: expected an integer or {{'height', 'width'}}, got {crop!r}")


def _parse_triple(values: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    value = values.get(key, default)
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 3:
        raise ConfigError(f"{key}: expected three numbers, got {value!r}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ConfigError(f"{key}: expected three numbers, got {value!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _parse_resample(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(_RESAMPLE):
        raise ConfigError(f"resample: expected Pillow's number of a filter, 0 to {len(_RESAMPLE) - 1}, got {value!r}")
    return _RESAMPLE[value]
