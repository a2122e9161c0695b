"""gitfast: fast inference for Microsoft's GIT models.

>>> import gitfast
>>> model = gitfast.load("microsoft/git-base-coco")
>>> print(model.caption("photo.jpg"))
"""

from gitfast.config import GitConfig, GitVisionConfig
from gitfast.engines.base import GenerationOptions, ImagePrefix
from gitfast.errors import CheckpointError, ConfigError, EngineError, GitfastError, ImageError, VideoError
from gitfast.model import Model
from gitfast.processor import Processor
from gitfast.results import Label, Result, Timings
from gitfast.tasks import load

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineError",
    "GenerationOptions",
    "GitConfig",
    "GitVisionConfig",
    "GitfastError",
    "ImageError",
    "ImagePrefix",
    "Label",
    "Model",
    "Processor",
    "Result",
    "Timings",
    "VideoError",
    "__version__",
    "load",
]
