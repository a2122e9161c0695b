"""State dicts as training scripts leave them: wrapped in other dicts, their names behind those of wrapper modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from gitfast.errors import CheckpointError

# Keys under which scripts save the state dict: Lightning, timm and Microsoft, plain loops, DeepSpeed.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "model_state")
_MAX_DEPTH = 4
# Modules that torch puts around others, anywhere in a model: compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Modules around the whole model: DataParallel, and the attributes that most scripts keep it under.
_ROOTS = ("module.", "model.", "net.")

T = TypeVar("T")


def unwrap(state: Any) -> Any:
    """Return the state dict inside a training script's file: {"state_dict": ...}, {"model": {"module": ...}}, ..."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(state, dict):
            break
        inner = next((state[key] for key in _KEYS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    return state


def without_wrappers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors under the names that the model itself gives them.

    ``_orig_mod.`` and its like go wherever they stand; the names of ``_ROOTS`` where every tensor begins with them.

    Raises:
        CheckpointError: two tensors would have one name.
    """
    named = {name: _WRAPPERS.sub("", name) for name in tensors}
    for _ in range(_MAX_DEPTH):
        root = next((r for r in _ROOTS if all(name.startswith(r) for name in named.values())), None)
        if root is None or not named:
            break
        named = {full: name.removeprefix(root) for full, name in named.items()}
    plain: dict[str, T] = {}
    for full, name in named.items():
        if name in plain:
            raise CheckpointError(f"holds {name} twice, once as {full}")
        plain[name] = tensors[full]
    return plain
