"""The classes of GIT as transformers shapes them: same arguments, same outputs, same names of tensors.

For moving code over, for research, and for training: ``from gitfast.compat import GitForCausalLM, GitProcessor``. If
transformers (5.23 or later) is installed they are subclasses of its own classes, so that Trainer, peft and pipelines
take them. Otherwise they are plain torch modules with the same names. In both, ``generate`` runs on the native
engine where it can. ``docs/transformers.md`` lists what differs from transformers on purpose.
"""

from __future__ import annotations

import importlib.metadata
import re

from gitfast.compat.outputs import CausalLMOutput, GenerateOutput, ModelOutput
from gitfast.compat.pipelines import pipeline

OLDEST_TRANSFORMERS = (5, 23)


def has_transformers() -> bool:
    """Return whether a transformers is installed that these classes can be built on."""
    try:
        version = importlib.metadata.version("transformers")
        import transformers  # noqa: F401  # hidden or broken: as if it were not there
    except ImportError:
        return False
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST_TRANSFORMERS


# The import decides between the two families of classes.
if has_transformers():
    from gitfast.compat.hf import GenerationConfig, GitConfig, GitForCausalLM, GitModel, GitVisionConfig, GitVisionModel
    from gitfast.compat.hf_processing import GitProcessor
else:
    from gitfast.compat.configuration import GenerationConfig, GitConfig, GitVisionConfig  # type: ignore[assignment]
    from gitfast.compat.modeling import GitForCausalLM, GitModel, GitVisionModel  # type: ignore[assignment]
    from gitfast.compat.processing import GitProcessor  # type: ignore[assignment]

__all__ = [
    "CausalLMOutput",
    "GenerateOutput",
    "GenerationConfig",
    "GitConfig",
    "GitForCausalLM",
    "GitModel",
    "GitProcessor",
    "GitVisionConfig",
    "GitVisionModel",
    "ModelOutput",
    "pipeline",
]
