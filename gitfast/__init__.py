"""gitfast: fast inference for Microsoft's GIT models.

>>> import gitfast
>>> model = gitfast.load("microsoft/git-base-coco")
>>> print(model.caption("photo.jpg"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gitfast.checkpoints.config import GitConfig, GitVisionConfig
    from gitfast.errors import (
        ArgumentError,
        CancelledError,
        CheckpointError,
        ConfigError,
        DeadlineError,
        EngineError,
        GitfastError,
        ImageError,
        VideoError,
    )
    from gitfast.inputs.limits import Limits
    from gitfast.inputs.processor import Processor
    from gitfast.loading import load
    from gitfast.model import Model
    from gitfast.results import Label, Result, Timings
    from gitfast.types import CancelToken, GenerationOptions, ImagePrefix

__version__ = "0.1.0"

# Where each public name is defined. A module is imported when the first of its names is used, so that the import of
# gitfast costs a small part of numpy's.
_MODULES = {
    "gitfast.checkpoints.config": ("GitConfig", "GitVisionConfig"),
    "gitfast.errors": (
        "ArgumentError",
        "CancelledError",
        "CheckpointError",
        "ConfigError",
        "DeadlineError",
        "EngineError",
        "GitfastError",
        "ImageError",
        "VideoError",
    ),
    "gitfast.inputs.limits": ("Limits",),
    "gitfast.inputs.processor": ("Processor",),
    "gitfast.loading": ("load",),
    "gitfast.model": ("Model",),
    "gitfast.results": ("Label", "Result", "Timings"),
    "gitfast.types": ("CancelToken", "GenerationOptions", "ImagePrefix"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ArgumentError",
    "CancelToken",
    "CancelledError",
    "CheckpointError",
    "ConfigError",
    "DeadlineError",
    "EngineError",
    "GenerationOptions",
    "GitConfig",
    "GitVisionConfig",
    "GitfastError",
    "ImageError",
    "ImagePrefix",
    "Label",
    "Limits",
    "Model",
    "Processor",
    "Result",
    "Timings",
    "VideoError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value  # the next use finds it without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
