"""The settings of a ``preprocessor_config.json``, checked: transformers' defaults, spellings and switches."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from gitfast.errors import ConfigError

ProcessorType: TypeAlias = Literal["CLIPImageProcessor", "VideoMAEImageProcessor"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # in the published video checkpoints
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_MAX_EDGE = 4096
# Settings that a switch needs: null is an error for transformers as long as the switch is on.
_NEEDED = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of an ``ImageProcessor``; missing keys take the defaults, a null switch is off.

    Raises:
        ConfigError: a value cannot be, or is null where it is needed, or the file is for a processor of another kind.
    """
    values = {key: False if value is None and key.startswith("do_") else value for key, value in values.items()}
    needed = {name for switch, names in _NEEDED.items() if _flag(values, switch) for name in names}
    values = {key: value for key, value in values.items() if value is not None or key in needed}
    kind = _processor_type(values)
    if values.get("do_pad"):
        raise ConfigError("do_pad: padding is not supported")
    if values.get("data_format", "channels_first") != "channels_first":
        raise ConfigError(f"data_format: expected 'channels_first', got {reprlib.repr(values['data_format'])}")
    video = kind == "VideoMAEImageProcessor"
    size, max_size = _parse_size(_squared(values, video)) if _flag(values, "do_resize") else (None, None)
    mean = _parse_triple(values, "image_mean", HALF if video else CLIP_MEAN)
    std = _parse_triple(values, "image_std", HALF if video else CLIP_STD)
    if 0.0 in std:
        raise ConfigError(f"image_std: expected no zero, got {std}")
    normalize = _flag(values, "do_normalize")
    return {
        "size": size,
        "max_size": max_size,
        "resample": _parse_resample(values.get("resample", 2 if video else 3)),
        "crop_size": _parse_crop(values.get("crop_size", 224)) if _flag(values, "do_center_crop") else None,
        "rescale_factor": _parse_factor(values),
        "image_mean": mean if normalize else None,
        "image_std": std if normalize else None,
        "processor_type": kind,
    }


def _squared(values: Mapping[str, Any], video: bool) -> Any:
    """Return ``size`` after the two switches that square it; both are off in every published file."""
    size = values.get("size", {"shortest_edge": 224})
    if _flag(values, "use_square_size", False) and not video:  # for CLIP's class alone, and whatever the size says
        return {"height": 224, "width": 224}
    if _flag(values, "default_to_square", False) and isinstance(size, int):
        return {"height": size, "width": size}
    return size


def _processor_type(values: Mapping[str, Any]) -> ProcessorType:
    """Return the kind of processor by a present or former name: CLIPImageProcessorPil, CLIPFeatureExtractor, ..."""
    name = values.get("image_processor_type", values.get("feature_extractor_type", "CLIPImageProcessor"))
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name) if isinstance(name, str) else name
    if kind == "CLIP":
        return "CLIPImageProcessor"
    if kind == "VideoMAE":
        return "VideoMAEImageProcessor"
    raise ConfigError(
        f"image_processor_type: expected CLIPImageProcessor or VideoMAEImageProcessor, got {reprlib.repr(name)}"
    )


def _flag(values: Mapping[str, Any], key: str, default: bool = True) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected true or false, got {reprlib.repr(value)}")
    return value


def _edge(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_EDGE:
        raise ConfigError(f"{key}: expected pixels from 1 to {_MAX_EDGE}, got {reprlib.repr(value)}")
    return value


def _parse_size(size: Any) -> tuple[int | tuple[int, int], int | None]:
    """Parse ``size`` and ``max_size`` from an int, [height, width], or a mapping with one of three sets of keys."""
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
        f"got {reprlib.repr(size)}"
    )


def _parse_crop(crop: Any) -> tuple[int, int]:
    if isinstance(crop, int):
        return (_edge("crop_size", crop),) * 2
    if isinstance(crop, (list, tuple)) and len(crop) == 2:
        return _edge("crop_size[0]", crop[0]), _edge("crop_size[1]", crop[1])
    if isinstance(crop, Mapping) and set(crop) == {"height", "width"}:
        return _edge("crop_size.height", crop["height"]), _edge("crop_size.width", crop["width"])
    raise ConfigError(f"crop_size: expected an integer or {{'height', 'width'}}, got {reprlib.repr(crop)}")


def _parse_triple(values: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    value = values.get(key, default)
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if isinstance(numbers, (list, tuple)) and len(numbers) == 3:
        red, green, blue = (_as_float(number) for number in numbers)
        if red is not None and green is not None and blue is not None:
            return red, green, blue
    raise ConfigError(f"{key}: expected three numbers, got {reprlib.repr(value)}")


def _parse_factor(values: Mapping[str, Any]) -> float:
    if not _flag(values, "do_rescale"):
        return 1.0
    factor = _as_float(values.get("rescale_factor", 1 / 255))
    if factor is None:
        raise ConfigError(f"rescale_factor: expected a number, got {reprlib.repr(values['rescale_factor'])}")
    return factor


def _as_float(value: Any) -> float | None:
    """Return a finite number that float32 holds; None for anything else, integers of any length among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= 3.4e38 else None


def _parse_resample(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(RESAMPLE):
        raise ConfigError(
            f"resample: expected Pillow's number of a filter, 0 to {len(RESAMPLE) - 1}, got {reprlib.repr(value)}"
        )
    return RESAMPLE[value]
