"""Microsoft's own checkpoints (``model.pt`` of GenerativeImage2Text): their tensor names, and their configuration.

The files hold no configuration; it follows from the shapes. The names are those of
https://github.com/microsoft/GenerativeImage2Text, mapped as transformers' conversion script did.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.checkpoints.stored_tensor import StoredTensor
from gitfast.errors import CheckpointError

_HEAD_DIM = 64  # in every published model, vision and text
_VISION = "git.image_encoder.vision_model"
# The first pattern that matches is replaced; names that none matches stay as they are.
_RENAMES = [
    (re.compile(rf"^{old}"), new)
    for old, new in (
        (r"image_encoder\.class_embedding$", f"{_VISION}.embeddings.class_embedding"),
        (r"image_encoder\.positional_embedding$", f"{_VISION}.embeddings.position_embedding.weight"),
        (r"image_encoder\.conv1\.weight$", f"{_VISION}.embeddings.patch_embedding.weight"),
        (r"image_encoder\.ln_pre\.", f"{_VISION}.pre_layrnorm."),
        (r"image_encoder\.ln_post\.", f"{_VISION}.post_layernorm."),
        (r"image_encoder\.transformer\.resblocks\.(\d+)\.attn\.", rf"{_VISION}.encoder.layers.\1.self_attn."),
        (r"image_encoder\.transformer\.resblocks\.(\d+)\.ln_([12])\.", rf"{_VISION}.encoder.layers.\1.layer_norm\2."),
        (r"image_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", rf"{_VISION}.encoder.layers.\1.mlp.fc1."),
        (r"image_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", rf"{_VISION}.encoder.layers.\1.mlp.fc2."),
        (r"textual\.embedding\.words\.", "git.embeddings.word_embeddings."),
        (r"textual\.embedding\.positions\.", "git.embeddings.position_embeddings."),
        (r"textual\.embedding\.layer_norm\.", "git.embeddings.LayerNorm."),
        (r"textual\.visual_projection\.", "git.visual_projection.visual_projection."),
        (r"textual\.transformer\.encoder\.layer\.", "git.encoder.layer."),
        (r"textual\.output\.", "output."),
        (r"img_temp[eo]ral_embedding\.", "git.img_temporal_embedding."),
    )
]


def is_microsoft(tensors: Mapping[str, object]) -> bool:
    """Return whether these are the names of Microsoft's files, with or without ``module.`` before each."""
    return any(name.removeprefix("module.").startswith("textual.") for name in tensors)


def rename_microsoft(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Rename Microsoft's tensors to Hugging Face names; split the encoder's joint projections in three.

    Raises:
        CheckpointError: two tensors would have one name.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        for pattern, replacement in _RENAMES:
            if pattern.match(name):
                name = pattern.sub(replacement, name)
                break
        if ".self_attn.in_proj_" in name and tensor.shape and tensor.shape[0] % 3 == 0:
            width = tensor.shape[0] // 3
            parts = {
                name.replace("in_proj_", part): tensor.rows(i * width, (i + 1) * width)
                for i, part in enumerate(("q_proj.", "k_proj.", "v_proj."))
            }
        else:
            parts = {name: tensor}
        if twice := sorted(parts.keys() & renamed.keys()):
            raise CheckpointError(f"holds {', '.join(twice)} twice, under different names")
        renamed |= parts
    return renamed


def config_from_shapes(tensors: Mapping[str, StoredTensor]) -> GitConfig:
    """Derive a model's configuration from its tensors under Hugging Face names.

    Raises:
        CheckpointError: a tensor that the configuration follows from is missing or has no such shape.
        ConfigError: the configuration that follows cannot be.
    """
    words = _shape(tensors, "git.embeddings.word_embeddings.weight", 2)
    positions = _shape(tensors, "git.embeddings.position_embeddings.weight", 2)
    patches = _shape(tensors, f"{_VISION}.embeddings.patch_embedding.weight", 4)
    grid = _shape(tensors, f"{_VISION}.embeddings.position_embedding.weight", 2)
    vision = GitVisionConfig(
        hidden_size=patches[0],
        intermediate_size=_shape(tensors, f"{_VISION}.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=_count(tensors, rf"{re.escape(_VISION)}\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(1, patches[0] // _HEAD_DIM),
        image_size=math.isqrt(max(grid[0] - 1, 0)) * patches[3],
        patch_size=patches[3],
    )
    return GitConfig(
        vision_config=vision,
        vocab_size=words[0],
        hidden_size=words[1],
        intermediate_size=_shape(tensors, "git.encoder.layer.0.intermediate.dense.weight", 2)[0],
        num_hidden_layers=_count(tensors, r"git\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, words[1] // _HEAD_DIM),
        max_position_embeddings=positions[0],
        num_image_with_embedding=_count(tensors, r"git\.img_temporal_embedding\.(\d+)") or None,
    )


def _shape(tensors: Mapping[str, StoredTensor], name: str, ndim: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != ndim:
        found = "it is missing" if tensor is None else f"its shape is {tensor.shape}"
        raise CheckpointError(f"no config.json, and the configuration cannot be read off {name}: {found}")
    return tensor.shape


def _count(tensors: Mapping[str, StoredTensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
