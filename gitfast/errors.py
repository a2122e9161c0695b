"""The exceptions that gitfast raises on bad inputs, files, engines and arguments. All derive from ``GitfastError``.

A value that the search or the model cannot take, ``num_beams=0`` or a text beyond its positions, is a plain ValueError
or TypeError.
"""

from __future__ import annotations


class GitfastError(Exception):
    """Base class of gitfast's own errors."""


class ConfigError(GitfastError, ValueError):
    """A model configuration is missing a value, or holds one that cannot be."""


class CheckpointError(GitfastError, ValueError):
    """A checkpoint file is missing, damaged, or does not match its configuration."""


class ImageError(GitfastError, ValueError):
    """An image or video frame cannot be read, or exceeds a safety limit."""


class VideoError(ImageError):
    """A video cannot be read, or exceeds a safety limit."""


class EngineError(GitfastError, RuntimeError):
    """The requested engine cannot run here; the message says why."""


class ArgumentError(GitfastError, ValueError, TypeError):
    """An argument of a call has a type or value that it cannot have; the message names it.

    Both a ValueError and a TypeError, so that callers need not know which of the two a wrong argument is.
    """


class EvaluationError(GitfastError, ValueError):
    """A file of captions, references, questions or answers cannot be read, or does not hold what it should."""


class CancelledError(GitfastError):
    """A call was ended by its ``CancelToken``."""


class DeadlineError(GitfastError, TimeoutError):
    """The time of a call's ``CancelToken`` ran out."""
