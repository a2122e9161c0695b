"""The 17 published checkpoints as shapes, scaled down, with random weights; and the golden run of transformers.

Scaled down are widths, depths and the vocabulary. Kept are what gives a checkpoint its shape: patch and image size
(so the number of image tokens), frames, head width 64, vision as wide as text (base) or wider (large), eps, and
whether prompts are [CLS] alone or [CLS] and a question.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transformers

from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.published import SHAPES
from gitfast.engines.cpu import CpuEngine

BOS, EOS = 101, 102
NEW_TOKENS = 20


# By patch: ViT-B/16 is as wide as the decoder, ViT-L/14 wider.
_VISION = {
    16: {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2},
    14: {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
}


def scaled_config(name: str) -> dict:
    """The ``config.json`` values of a published checkpoint, scaled down."""
    shape = SHAPES[name]
    image_size, patch_size = shape.vision_config.image_size, shape.vision_config.patch_size
    vision = {**_VISION[patch_size], "num_hidden_layers": 3, "image_size": image_size, "patch_size": patch_size}
    return {
        "vision_config": vision,
        "vocab_size": 1_000,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "num_image_with_embedding": shape.num_image_with_embedding,
    }


def published_case(name: str, **options: Any) -> Case:
    """A published checkpoint, scaled down; those that answer questions are asked some."""
    return Case(scaled_config(name), questions="qa" in name, **options)


def random_model(values: dict, seed: int, std: float, attention_gain: float) -> transformers.GitForCausalLM:
    """transformers' model with random weights: no norm is the identity, no bias zero, no temporal embedding unset.

    ``attention_gain`` sharpens attention. In a small model without it every token sees the mean of the image, all
    images get one caption, and that soon repeats itself.
    """
    torch.manual_seed(seed)
    model = transformers.GitForCausalLM(transformers.GitConfig(**values)).eval()
    gains = dict.fromkeys(("query", "key", "q_proj", "k_proj"), attention_gain)
    gains |= dict.fromkeys(("value", "v_proj"), attention_gain / 3)
    with torch.no_grad():
        for name, x in model.named_parameters():
            gain = next((gains[part] for part in name.split(".") if part in gains), 1)
            x.normal_(mean=1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, std=gain * std)
    return model


def published_weights(model: transformers.GitForCausalLM) -> dict[str, np.ndarray]:
    """The state dict under the names of the published files, which spell the temporal embedding otherwise."""
    names = {name: name.replace("img_temporal_embedding", "img_temperal_embedding") for name in model.state_dict()}
    return {names[name]: x.numpy() for name, x in model.state_dict().items()}


class Case:
    """One model on both sides, and what transformers makes of two inputs: in float32, and in float64 as the truth."""

    def __init__(
        self, values: dict, *, seed: int, std: float = 0.04, attention_gain: float = 6, questions: bool = False
    ) -> None:
        self.theirs = random_model(values, seed, std, attention_gain)
        self.exact = copy.deepcopy(self.theirs).double()
        self.config = GitConfig.from_dict(values)
        self.engine = CpuEngine.from_weights(self.config, published_weights(self.theirs), num_threads=2)
        generator = torch.Generator().manual_seed(seed)
        size, frames = self.config.vision_config.image_size, self.config.num_image_with_embedding
        self.pixels = torch.randn(2, *([frames] if frames else []), 3, size, size, generator=generator)
        words = torch.randint(110, self.config.vocab_size, (7,), generator=generator).tolist()
        self.prompts = [[BOS, *words[:2]], [BOS, *words[2:]]] if questions else [[BOS], [BOS]]

    @cached_property
    def prefixes(self) -> list:
        return self.engine.encode(self.pixels.numpy())

    @cached_property
    def golden(self) -> transformers.generation.GenerateDecoderOnlyOutput:
        """Greedy search of transformers over both rows in one batch, shorter prompts padded on the left."""
        longest = max(len(p) for p in self.prompts)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in self.prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts])
        with torch.inference_mode():
            return self.theirs.generate(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=self.pixels,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                suppress_tokens=[EOS],  # so that every row runs to its full length
                output_logits=True,
                return_dict_in_generate=True,
            )

    @cached_property
    def golden_tokens(self) -> list[list[int]]:
        return self.golden.sequences[:, -NEW_TOKENS:].tolist()

    def sequence(self, row: int) -> list[int]:
        return self.prompts[row] + self.golden_tokens[row]

    @cached_property
    def truth(self) -> list:
        """Per row, one pass of the float64 model over its prompt and golden tokens: logits, keys and values."""
        return self._one_pass(self.exact)

    @cached_property
    def theirs_in_one_pass(self) -> list:
        return self._one_pass(self.theirs)

    @torch.inference_mode()
    def _one_pass(self, model: transformers.GitForCausalLM) -> list:
        pixels = self.pixels.to(model.dtype)
        return [
            model(input_ids=torch.tensor([self.sequence(row)]), pixel_values=pixels[row : row + 1], use_cache=True)
            for row in range(2)
        ]

    @torch.inference_mode()
    def features(self, model: transformers.GitForCausalLM) -> torch.Tensor:
        """Vision features as the projection reads them (2, frames * N, Dv)."""
        pixels = self.pixels.to(model.dtype)
        if pixels.ndim == 4:
            return model.git.image_encoder(pixels).last_hidden_state
        embedded = [
            model.git.image_encoder(pixels[:, t]).last_hidden_state + model.git.img_temporal_embedding[t]
            for t in range(pixels.shape[1])
        ]
        return torch.cat(embedded, dim=1)
