"""``GitForCausalLM.generate``: which engine runs, and tensors in place of lists."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gitfast.compat.outputs import GenerateOutput
from gitfast.engines.base import Engine
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.reference import ReferenceEngine
from gitfast.errors import EngineError
from gitfast.types import Generation, GenerationOptions

if TYPE_CHECKING:
    from gitfast.compat.modeling import GitForCausalLM

_DEFAULT_NEW_TOKENS = 20
_FIELDS = frozenset(field.name for field in dataclasses.fields(GenerationOptions))


def generate(
    model: GitForCausalLM,
    input_ids: Tensor | None,
    pixel_values: Tensor | None,
    attention_mask: Tensor | None,
    return_dict: bool,
    engine: str,
    options: dict[str, Any],
) -> Tensor | GenerateOutput:
    """See ``GitForCausalLM.generate``."""
    prompts = _prompts(model, input_ids, pixel_values, attention_mask)
    chosen = _options(options, max(len(row) for row in prompts))
    training = model.training
    try:
        runner = _engine(model, engine)
        prefixes: list[Any] = [None]
        if pixel_values is not None:
            prefixes = list(runner.encode(pixel_values.detach().float().cpu().numpy()))
        if len(prompts) % len(prefixes):
            raise ValueError(f"input_ids: {len(prompts)} rows do not divide over {len(prefixes)} images")
        rows = [prefixes[r % len(prefixes)] for r in range(len(prompts))]
        found = runner.generate(rows, prompts, chosen)
    finally:
        model.train(training)
    found = [sequences[: chosen.num_return_sequences] for sequences in found]
    sequences = _pad(model, input_ids, prompts, found)
    if not return_dict:
        return sequences
    flat = [generation for row in found for generation in row]
    return GenerateOutput(
        sequences=sequences,
        sequences_scores=torch.tensor([generation.score for generation in flat], device=model.device),
        token_logprobs=[generation.token_logprobs for generation in flat],
        engine=runner.name,
    )


def _prompts(
    model: GitForCausalLM, input_ids: Tensor | None, pixel_values: Tensor | None, mask: Tensor | None
) -> list[list[int]]:
    """The real tokens of every row."""
    if input_ids is None:
        return [[model.config.bos_token_id]] * (1 if pixel_values is None else len(pixel_values))
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: expected (R, L), got {tuple(input_ids.shape)}")
    real = input_ids != model.config.pad_token_id if mask is None else mask != 0
    if real.shape != input_ids.shape:
        raise ValueError(f"attention_mask: expected shape {tuple(input_ids.shape)}, got {tuple(real.shape)}")
    prompts = [row[keep].tolist() for row, keep in zip(input_ids, real, strict=True)]
    if not all(prompts):
        raise ValueError("input_ids: a row has no token that is not padding")
    return prompts


def _options(values: dict[str, Any], prompt_length: int) -> GenerationOptions:
    values = dict(values)
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if (length := values.pop(total, None)) is not None and values.get(new) is None:
            values[new] = max(0, length - prompt_length)
            if total == "max_length" and length <= prompt_length:
                raise ValueError(f"max_length: expected more than the prompt's {prompt_length} tokens, got {length}")
    values = {name: value for name, value in values.items() if value is not None}
    if unknown := sorted(values.keys() - _FIELDS):
        raise TypeError(f"generate: unknown options {', '.join(unknown)}")
    values.setdefault("max_new_tokens", _DEFAULT_NEW_TOKENS)
    return GenerationOptions(**values)


def _engine(model: GitForCausalLM, name: str) -> Engine:
    if name not in ("auto", "cpu", "reference"):
        raise ValueError(f"engine: expected 'auto', 'cpu' or 'reference', got {name!r}")
    suits = model.device.type == "cpu" and model.dtype == torch.float32
    if name == "cpu" and not suits:
        raise EngineError(f"cpu engine: needs a float32 model on the CPU, got {model.dtype} on {model.device}")
    if name == "reference" or not suits or (name == "auto" and model.training):
        return ReferenceEngine(model)  # type: ignore[return-value]  # it takes prefixes of its own kind only
    state = tuple((p.data_ptr(), p._version) for p in model.parameters())
    if model._native is None or model._native[1] != state:
        weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
        model._native = (CpuEngine.from_weights(model.config, weights), state)
    return model._native[0]


def _pad(
    model: GitForCausalLM, input_ids: Tensor | None, prompts: list[list[int]], found: list[list[Generation]]
) -> Tensor:
    """(R * n, longest): every row's prompt as it was passed, and its new tokens."""
    given = prompts if input_ids is None else input_ids.tolist()
    rows = [[*prompt, *generation.token_ids] for prompt, row in zip(given, found, strict=True) for generation in row]
    sequences = torch.full((len(rows), max(map(len, rows))), model.config.pad_token_id)
    for i, row in enumerate(rows):
        sequences[i, : len(row)] = torch.tensor(row)
    return sequences.to(model.device)
