"""``ImageProcessor``: from pictures to the pixels a model reads.

Resizes, crops and normalises bit for bit as the Pillow back end of transformers' ``CLIPImageProcessor`` and
``VideoMAEImageProcessor``. Does not need torch.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gitfast import _C
from gitfast.checkpoints.config import GitConfig, read_json
from gitfast.errors import ConfigError, ImageError
from gitfast.inputs.files import describe_source
from gitfast.inputs.image_settings import CLIP_MEAN, CLIP_STD, HALF, RESAMPLE, ProcessorType, read_settings
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.pictures import ImageSource, detach, loading, pillow
from gitfast.inputs.reading import map_in_threads
from gitfast.types import Normalization

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["CLIP_MEAN", "CLIP_STD", "ImageProcessor", "ImageSource"]

# A file of settings may ask for more than any source: 4096 pixels for the shorter edge of a 50 x 1 picture.
MAX_RESIZED_PIXELS = 1 << 26  # before the crop: 51200 x 1024, the thinnest picture for the largest model
MAX_TARGET_PIXELS = 1 << 22  # the model's input

# Where the native resampling is known to give Pillow's bytes: elsewhere compilers may fuse the multiply-adds that
# compute weights.
_NATIVE = platform.machine() in ("x86_64", "AMD64")
_NATIVE_FILTERS = ("bicubic", "bilinear", "box")


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """A processor of RGB pictures to pixels, with its settings. Defaults: ``microsoft/git-base``.

    Attributes:
        size: An int resizes the shorter edge to it, a pair resizes to exactly (height, width), None keeps the size.
        max_size: With an int ``size``: where the longer edge would exceed this, both shrink to respect it.
        resample: Pillow's filter: nearest, lanczos, bilinear, bicubic, box or hamming.
        crop_size: (height, width) cut from the centre, zero-padded where the image is smaller; None keeps all.
        rounding: The rounding of halved odd margins, and of edges that ``max_size`` decides. "transformers" floors
            margins and takes the longer edge from the exact shorter one; "original", as Microsoft's code, rounds half
            to even and takes the longer edge from the rounded shorter one.
        rescale_factor: Multiplies the pixel values 0..255.
        image_mean, image_std: Statistics per channel, in rescaled units; None does not normalise.
        processor_type: The transformers class these settings belong to; names the file written by ``to_dict``.
        min_edge: Pixels that each edge must have at the end: a patch of the model.
        fast: Decode JPEGs at 1/2, 1/4 or 1/8 of their size where twice the target size remains, then resize as usual.
            Not exact: bytes of photographs of 11 to 19 megapixels differ by 0.2 to 0.6 on average and by 21 at most,
            for half to a third of the CPU time.
    """

    size: int | tuple[int, int] | None = 224
    max_size: int | None = None
    resample: str = "bicubic"
    crop_size: tuple[int, int] | None = (224, 224)
    rounding: Literal["transformers", "original"] = "transformers"
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] | None = CLIP_MEAN
    image_std: tuple[float, float, float] | None = CLIP_STD
    processor_type: ProcessorType = "CLIPImageProcessor"
    min_edge: int = 1
    fast: bool = False

    @classmethod
    def for_config(cls, config: GitConfig) -> ImageProcessor:
        """Return the published checkpoint's settings for this configuration, for folders that hold none."""
        edge = config.vision_config.image_size
        square = cls(size=edge, crop_size=(edge, edge))
        if not config.is_video:
            return square
        return dataclasses.replace(
            square, resample="bilinear", image_mean=HALF, image_std=HALF, processor_type="VideoMAEImageProcessor"
        )

    @classmethod
    def original(cls, config: GitConfig) -> ImageProcessor:
        """Return the settings of Microsoft's own code, which differ from the published processor files.

        Question answering checkpoints (images larger than 224) keep the aspect ratio: the shorter edge becomes
        image_size, the longer at most 4/3 of it, nothing is cropped. Video frames use CLIP's statistics and bicubic.
        """
        edge, patch = config.vision_config.image_size, config.vision_config.patch_size
        if edge > 224:
            return cls(size=edge, max_size=edge * 4 // 3, crop_size=None, rounding="original", min_edge=patch)
        return cls(size=edge, crop_size=(edge, edge), rounding="original")

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
        """Build from a ``preprocessor_config.json`` mapping; missing keys take transformers' defaults.

        Images always become RGB, whatever ``do_convert_rgb`` says: the models have three channels.

        Raises:
            ConfigError: a value cannot be, is null though its switch is on, or the file is for a processor of another
                kind.
        """
        return cls(**read_settings(values))

    def to_dict(self) -> dict[str, Any]:
        """Return the ``preprocessor_config.json`` mapping of these settings."""
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
            "resample": RESAMPLE.index(self.resample),
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
        limits: Limits = DEFAULT_LIMITS,
        num_threads: int | None = None,
        normalize: bool = True,
    ) -> np.ndarray:
        """Turn an image, a list, or an array or tensor (B, H, W, C) or (B, C, H, W) into float32 (B, 3, H, W).

        Args:
            images: Each anything that ``load_image`` takes.
            exif, limits: As in ``load_image``.
            num_threads: Images decoded and resized at a time; None: as many as there are CPUs, at most 32.
            normalize: False leaves bytes, uint8 (B, H, W, 3), for an engine that knows this ``normalization``.

        Raises:
            ImageError: an image is bad (the message gives its index in a list), or without a crop the images end
                in different sizes and cannot be one array.
        """
        given: Any = images
        sources = list(given) if isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 4 else [given]
        if not sources:
            raise ImageError("images: expected at least one image, got an empty list")

        def named(index: int, error: ImageError) -> ImageError:
            return error if len(sources) == 1 else type(error)(f"images[{index}]: {error}")

        # Each is detached when its turn comes, but in order, before any thread sees it.
        for index, source in enumerate(sources):
            try:
                sources[index] = detach(source, limits)
            except ImageError as error:
                raise named(index, error) from None

        def read(index: int) -> np.ndarray:
            try:
                return self.read(sources[index], exif=exif, limits=limits, normalize=normalize)
            except ImageError as error:
                raise named(index, error) from None

        pixels = map_in_threads(read, range(len(sources)), num_threads)
        if len(pixels) == 1:
            return pixels[0][None]
        if len({p.shape for p in pixels}) > 1:
            sizes = [p.shape[1:] if normalize else p.shape[:2] for p in pixels]
            raise ImageError(f"images: these settings give different sizes: {sizes}")
        return np.stack(pixels)

    def read(
        self, source: ImageSource, *, exif: bool = True, limits: Limits = DEFAULT_LIMITS, normalize: bool = True
    ) -> np.ndarray:
        """Read and ``preprocess`` one image, anything that ``load_image`` takes; its picture is held no longer."""
        least = self._least_size if self.fast and self.size is not None else None
        with loading(source, exif=exif, limits=limits, least=least) as (picture, size):
            try:
                return self.preprocess(picture, normalize=normalize, size=size)
            except ImageError as error:
                raise ImageError(f"{describe_source(source)}: {error}") from None

    @property
    def normalization(self) -> Normalization:
        """The normalization of the bytes of a resized and cropped picture."""
        mean, std = self.image_mean, self.image_std
        if mean is None or std is None:
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return Normalization(factor=self.rescale_factor, mean=mean, std=std)

    def preprocess(
        self, image: PIL.Image.Image, *, normalize: bool = True, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Turn one RGB picture from ``load_image`` into float32 (3, H, W); not normalised, uint8 (H, W, 3).

        Args:
            size: (width, height) of the picture, if it was decoded reduced.

        Raises:
            ImageError: the settings ask for more pixels of it than are allowed, or it ends thinner than ``min_edge``.
        """
        size = size or image.size
        width, height = size if self.size is None else self._resized(*size)
        crop_height, crop_width = self.crop_size or (height, width)
        for what, (w, h), most in (
            ("resized", (width, height), MAX_RESIZED_PIXELS),
            ("used", (crop_width, crop_height), MAX_TARGET_PIXELS),
        ):
            if w * h > most:
                raise ImageError(
                    f"{size[0]} x {size[1]} pixels would be {what} at {w} x {h}; at most {most} pixels are"
                )
        if min(crop_width, crop_height) < self.min_edge:
            raise ImageError(
                f"{size[0]} x {size[1]} pixels become {crop_width} x {crop_height}; the model reads patches of "
                f"{self.min_edge} x {self.min_edge}"
            )
        if size == image.size and (native := self._resample(image, (width, height), normalize)) is not None:
            return native
        if self.size is not None:
            image = image.resize((width, height), getattr(pillow().Resampling, self.resample.upper()))
        pixels = np.asarray(image)
        if self.crop_size is not None:
            pixels = self._crop(pixels)
        return self._normalize(pixels) if normalize else pixels

    def _resample(self, image: PIL.Image.Image, resized: tuple[int, int], normalize: bool) -> np.ndarray | None:
        """Resize, crop and normalise in one native pass; None: for Pillow to do."""
        keeps_aspect = isinstance(self.size, int) and self.max_size is None
        if not (_NATIVE and keeps_aspect and self.resample in _NATIVE_FILTERS and image.mode == "RGB"):
            return None
        width, height = resized
        fewer_rows, fewer_columns = image.height - height, image.width - width
        if fewer_rows > max(0, 2 * fewer_columns):  # Pillow 13 then resizes along columns first
            return None
        try:
            _, pixels = image.__arrow_c_array__()
        except ValueError:  # a large picture, whose rows are in several blocks
            return None
        crop = self.crop_size or (height, width)
        start = self._margin(height, crop[0]), self._margin(width, crop[1])
        values = self._values if normalize else None
        return _C.resample(pixels, image.size, resized, self.resample, start, crop, values)

    @cached_property
    def _values(self) -> np.ndarray:
        """Return the normalised values of bytes, float32 (3, 256)."""
        return self._normalize(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))[:, 0]

    def _margin(self, have: int, want: int) -> int:
        """Return the first row or column of the crop: below zero where the crop is larger."""
        return (have - want) // 2 if self.rounding == "transformers" else round((have - want) / 2)

    def _least_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return twice the target size: the rest of the resampling hides the effects of the decoder's reduction."""
        width, height = self._resized(*size)
        return 2 * width, 2 * height

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        assert self.size is not None
        short, long, edge = min(width, height), max(width, height), self.size
        new_long = int(edge * long / short)
        if self.max_size is not None and long / short * edge > self.max_size:
            exact = self.max_size * short / long
            edge = max(1, round(exact))
            new_long = int((edge if self.rounding == "original" else exact) * long / short)
            if short == edge:
                new_long = long
        return (edge, new_long) if width <= height else (new_long, edge)

    def _crop(self, pixels: np.ndarray) -> np.ndarray:
        """Crop the centre of uint8 (H, W, 3), with zeros around it where the crop is larger."""
        assert self.crop_size is not None
        cropped = np.zeros((*self.crop_size, 3), np.uint8)
        source, target = [], []
        for have, want in zip(pixels.shape[:2], self.crop_size, strict=True):
            start = self._margin(have, want)
            source.append(slice(max(0, start), min(have, start + want)))
            target.append(slice(max(0, -start), min(want, have - start)))
        cropped[tuple(target)] = pixels[tuple(source)]
        return cropped

    def _normalize(self, image: np.ndarray) -> np.ndarray:
        """Normalise uint8 (H, W, 3) to float32 (3, H, W)."""
        pixels = np.empty((3, *image.shape[:2]), np.float32)
        # The product in float64, rounded once to float32, as transformers does.
        np.multiply(image.transpose(2, 0, 1), self.rescale_factor, out=pixels, dtype=np.float64, casting="unsafe")
        if self.image_mean is not None and self.image_std is not None:
            pixels -= np.array(self.image_mean, np.float32)[:, None, None]
            pixels /= np.array(self.image_std, np.float32)[:, None, None]
        return pixels
