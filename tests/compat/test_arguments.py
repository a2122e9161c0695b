"""Arguments of other types: an error that names them, of both families of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gitfast.compat import hf_processing, pipeline
from gitfast.errors import ArgumentError

IDS = torch.tensor([[2, 5]])
PIXELS = torch.zeros(1, 3, 32, 32)
NO_TENSORS = ["4", 2.5, float("nan"), True, np.int64(3), np.ones((1, 2)), 10**400, [], {}, b"x", object(), print]
TENSORS = ("input_ids", "attention_mask", "pixel_values")


@pytest.mark.parametrize("name", [*TENSORS, "position_ids", "inputs_embeds", "labels"])
def test_what_forward_takes_is_a_tensor(model: Any, name: str) -> None:
    for value in NO_TENSORS:
        with pytest.raises(ArgumentError, match=f"^{name}: expected a tensor, got "):
            model(**{"input_ids": IDS, "pixel_values": PIXELS, name: value})


@pytest.mark.parametrize("name", TENSORS)
def test_what_generate_takes_is_a_tensor(model: Any, name: str) -> None:
    for value in NO_TENSORS:
        with pytest.raises(ArgumentError, match=f"^{name}: expected a tensor, got "):
            model.generate(**{"input_ids": IDS, "pixel_values": PIXELS, name: value})


@pytest.mark.parametrize("shape", [(), (0,), (3, 32, 32), (0, 3, 32, 32), (1, 1, 1, 1, 1, 1)])
def test_the_shape_of_pixels(model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^pixel_values: expected \(B, 3, H, W\)"):
        model.generate(pixel_values=torch.zeros(shape))


OTHERS = [torch.tensor([1, 2]), np.array([1, 2]), "4", 2.5, [], {}, object(), print]


@pytest.mark.parametrize("name", ["do_sample", "use_cache", "return_dict_in_generate", "interpolate_pos_encoding"])
def test_flags_of_generate(model: Any, name: str) -> None:
    for value in OTHERS:
        with pytest.raises(ArgumentError, match=f"^{name}: expected True or False, got "):
            model.generate(pixel_values=PIXELS, **{name: value})


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id", "eos_token_id"])
def test_token_ids_of_generate(model: Any, name: str) -> None:
    values: list[Any] = ["4", 2.5, True, np.ones(2), {}, object(), print, b"x", ["a", 5], [None], [[1]], 10**4000]
    for value in [*values, *([] if name == "eos_token_id" else [10**9 * 9, -(2**70)])]:
        with pytest.raises(ArgumentError, match=f"^{name}: expected "):
            model.generate(pixel_values=PIXELS, max_new_tokens=2, **{name: value})
    assert len(model.generate(pixel_values=PIXELS, max_new_tokens=2, **{name: np.int64(3)})) == 1


def test_other_arguments(kit: Any, model: Any) -> None:
    for value in ("4", 2.5, True, [], object(), torch.ones(2)):
        with pytest.raises(ArgumentError, match=r"^generation_config: expected a GenerationConfig, got "):
            model.generate(pixel_values=PIXELS, generation_config=value)
    for name in (None, b"x", 5, ["git-tiny"]):
        with pytest.raises(ArgumentError, match=r"^model: expected a name or a path, got "):
            kit.GitProcessor.from_pretrained(name)
    for value in (np.ones(2), 10**5000, None, ["image-to-text"]):
        with pytest.raises(ValueError, match=r"^task: expected 'image-to-text', got "):
            pipeline(value)


def test_empty_lists() -> None:
    """Transformers' own processor recurses without end."""
    processor = hf_processing.GitProcessor.from_pretrained("git-tiny")
    for name in ("images", "text", "videos"):
        with pytest.raises(ArgumentError, match=f"^{name}: expected at least one"):
            processor(**{name: []})
