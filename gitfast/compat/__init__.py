"""The classes of GIT as transformers shapes them: same arguments, same outputs, same names of tensors.

For moving code over, for research, and for training: ``from gitfast.compat import GitForCausalLM, GitProcessor``. They
are built of the reference engine's modules, need torch, and do not need transformers. Differences, all on purpose:

- Text positions count text only, with a cache too; transformers counts image tokens unless ``position_ids`` are given.
- Video checkpoints keep their temporal embeddings, whichever way they are spelled.
- There is no dropout.
- ``generate`` runs on the native engine where it can and says so; finished rows are padded with ``pad_token_id``, after
  beams too.
"""

from gitfast.checkpoints.config import GitVisionConfig
from gitfast.compat.configuration import GitConfig
from gitfast.compat.modeling import GitForCausalLM, GitModel, GitVisionModel
from gitfast.compat.outputs import CausalLMOutput, GenerateOutput, ModelOutput
from gitfast.compat.processing import GitProcessor

__all__ = [
    "CausalLMOutput",
    "GenerateOutput",
    "GitConfig",
    "GitForCausalLM",
    "GitModel",
    "GitProcessor",
    "GitVisionConfig",
    "GitVisionModel",
    "ModelOutput",
]
