"""gitfast: fast inference for Microsoft's GIT models.

>>> import gitfast
>>> model = gitfast.load("microsoft/git-base-coco")
>>> print(model.caption("photo.jpg"))
"""

from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.errors import CheckpointError, ConfigError, EngineError, GitfastError, ImageError, VideoError
from gitfast.inputs.processor import Processor
from gitfast.loading import load
from gitfast.model import Model
from gitfast.results import Label, Result, Timings
from gitfast.types import GenerationOptions, ImagePrefix

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
