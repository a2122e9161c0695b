"""One model under several engines, for benchmarks: captions as token ids, and logits to judge them by.

All hold the same random weights. A captioner is named by its engine and dtype, as in ``transformers:bfloat16``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import transformers

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cpu import CpuEngine
from gitfast.types import GenerationOptions

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SHAPES = {
    "git-base": {},
    "git-base-vqav2": {"vision_config": {"image_size": 480}},
    "git-base-vatex": {"num_image_with_embedding": 6},
    "git-large": {"vision_config": {**LARGE, "patch_size": 14}},
    "tiny": {  # for tests
        "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "image_size": 32, "patch_size": 16},
        "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip


class Captioner(Protocol):
    def caption(self, new_tokens: int) -> list[int]:
        """Pixels in, ``new_tokens`` greedy token ids out; never ends early."""
        ...

    def logits(self, ids: list[int]) -> np.ndarray:
        """At every one of ``ids`` (L,), which follow the image: (L, V)."""
        ...


def random_model(config: transformers.GitConfig) -> transformers.GitForCausalLM:
    """The same random weights at every call."""
    torch.manual_seed(1)
    model = transformers.GitForCausalLM(config).eval()
    with torch.no_grad():  # transformers leaves these unset
        for name, x in model.named_parameters():
            if "temporal" in name:
                x.normal_(std=0.02)
    return model


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def random_pixels(config: transformers.GitConfig) -> np.ndarray:
    frames, size = config.num_image_with_embedding, config.vision_config.image_size
    shape = (1, *([frames] if frames else []), 3, size, size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


class Transformers:
    """Eager, as its documentation shows."""

    def __init__(self, config: transformers.GitConfig, dtype: str, pixels: np.ndarray, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = random_model(config).to(getattr(torch, dtype))
        self.pixels = torch.from_numpy(pixels).to(self.model.dtype)

    @torch.inference_mode()
    def caption(self, new_tokens: int) -> list[int]:
        eos = self.model.config.eos_token_id
        options = {"max_new_tokens": new_tokens, "do_sample": False, "suppress_tokens": [eos]}
        return self.model.generate(pixel_values=self.pixels, **options)[0, 1:].tolist()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> np.ndarray:
        output = self.model(input_ids=torch.tensor([ids]), pixel_values=self.pixels)
        return output.logits[0, -len(ids) :].double().numpy()


class Gitfast:
    """The CPU engine."""

    def __init__(
        self,
        config: transformers.GitConfig,
        dtype: str,
        pixels: np.ndarray,
        threads: int,
        *,
        two_stage_head: bool = False,
    ) -> None:
        self.arguments = (config, dtype, pixels, threads)
        self.config = GitConfig.from_dict(config.to_dict())
        weights = {name: x.numpy() for name, x in random_model(config).state_dict().items()}
        self.engine = CpuEngine.from_weights(
            self.config, weights, dtype=dtype, num_threads=threads, two_stage_head=two_stage_head
        )
        self.pixels = pixels
        self.prefix = self.engine.encode(pixels)[0]

    def options(self, new_tokens: int, beams: int = 1) -> GenerationOptions:
        suppressed = [self.config.eos_token_id]
        return GenerationOptions(max_new_tokens=new_tokens, num_beams=beams, suppress_tokens=suppressed)

    def caption(self, new_tokens: int, beams: int = 1) -> list[int]:
        prefixes, prompts = self.engine.encode(self.pixels), [[self.config.bos_token_id]]
        return self.engine.generate(prefixes, prompts, self.options(new_tokens, beams))[0][0].token_ids

    def decode(self, prefixes: list, new_tokens: int, beams: int = 1) -> None:
        """Captions over prefixes that are there already."""
        prompts = [[self.config.bos_token_id]] * len(prefixes)
        self.engine.generate(prefixes, prompts, self.options(new_tokens, beams))

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.engine.logits([self.prefix], [ids])[0]

    def step_bytes(self) -> int:
        """Bytes that one step of one row must read: the matrices of the decoder, its head, and the prefix."""
        c = self.config
        layer = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
        weights = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
        return weights * {"float32": 4, "bfloat16": 2, "int8": 1}[self.engine.dtype] + self.prefix.nbytes


# Where each engine is; those of peers.py need packages of their own.
ENGINES = {
    "transformers": (__name__, "Transformers"),
    "gitfast": (__name__, "Gitfast"),
    "compiled": ("peers", "Compiled"),
    "openvino": ("peers", "OpenVino"),
    "onnxruntime": ("peers", "OnnxRuntime"),
}


def make_captioner(name: str, config: transformers.GitConfig, pixels: np.ndarray, threads: int) -> Captioner:
    """By ``engine:dtype``. Raises ValueError for an engine there is not, ImportError where its package is missing."""
    engine, _, dtype = name.partition(":")
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    module, class_name = ENGINES[engine]
    return getattr(importlib.import_module(module), class_name)(config, dtype or "float32", pixels, threads)
