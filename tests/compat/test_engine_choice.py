"""The choice of engine: models and options that run on the native one, and the fate of those that cannot."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gitfast.compat import generation, native
from gitfast.errors import EngineError


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, 32, 32)).astype(np.float32))


def ran_on(model: Any, **options: Any) -> str:
    output = model.generate(pixel_values=pixels(1), max_new_tokens=4, return_dict_in_generate=True, **options)
    return output.engine


def head_of_another_class(model: Any) -> None:
    class Twice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.output = Twice(32, 31)


def head_without_bias(model: Any) -> None:
    model.output = nn.Linear(32, 31, bias=False)


def wrapped_head(model: Any) -> None:
    model.output = nn.Sequential(model.output)


def weight_norm(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.output)


def forward_hook(model: Any) -> None:
    model.output.register_forward_hook(lambda module, inputs, output: output)


def forward_pre_hook(model: Any) -> None:
    model.git.embeddings.LayerNorm.register_forward_pre_hook(lambda module, inputs: inputs)


def another_epsilon(model: Any) -> None:
    model.git.embeddings.LayerNorm.eps = 0.1


def replaced_forward(model: Any) -> None:
    head = model.output
    head.forward = lambda x: nn.functional.linear(x, head.weight, head.bias)


def prepared_inputs(model: Any) -> None:
    model.prepare_inputs_for_generation = getattr(model, "prepare_inputs_for_generation", None)


CHANGES = [
    (prepared_inputs, "prepare_inputs_for_generation of the model is replaced"),
    (head_of_another_class, "output is a .*Twice"),
    (head_without_bias, "output"),
    (wrapped_head, "output"),
    (weight_norm, "output"),
    (forward_hook, "output has forward hooks"),
    (forward_pre_hook, r"git\.embeddings\.LayerNorm has forward hooks"),
    (another_epsilon, r"git\.embeddings\.LayerNorm is LayerNorm\(.*eps=0\.1"),
    (replaced_forward, "forward of output is replaced"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_a_changed_model_runs_as_it_is(model: Any, change: Any, message: str, caplog: Any) -> None:
    generation._say.cache_clear()
    torch.manual_seed(0)
    change(model)
    with caplog.at_level(logging.WARNING, "gitfast.compat"):
        assert ran_on(model) == "reference"
        assert ran_on(model) == "reference"
    said = [r.getMessage() for r in caplog.records if r.name == "gitfast.compat"]
    assert len(said) == 1  # once
    with pytest.raises(EngineError, match=message):
        ran_on(model, engine="cpu")
    prompt = torch.tensor([[2]])
    first = model(prompt, pixel_values=pixels(1)).logits[0, -1].argmax()
    assert model.generate(pixel_values=pixels(1), max_new_tokens=1)[0, 1] == first


def test_dropout_of_a_model_in_evaluation_mode(model: Any) -> None:
    assert not model.training
    model.git.encoder.train()  # Monte Carlo dropout
    assert ran_on(model) == "reference"
    with pytest.raises(EngineError, match=r"git\.encoder\.layer\.0.* is in training mode, and drops values"):
        ran_on(model, engine="cpu")
    model.eval()
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.train()  # which changes nothing
    assert ran_on(model) == "cpu"


def test_hooks_are_called_for_every_step(model: Any) -> None:
    calls = []
    model.output.register_forward_hook(lambda module, inputs, output: calls.append(len(calls)))
    tokens = model.generate(pixel_values=pixels(1), min_new_tokens=3, max_new_tokens=3)
    assert tokens.shape == (1, 4)
    assert len(calls) == 3


def test_an_overridden_forward_has_its_effect(kit: Any, folder: Path) -> None:
    class Always7(kit.GitForCausalLM):
        def forward(self, input_ids: Any = None, pixel_values: Any = None, **options: Any) -> Any:
            output = super().forward(input_ids, pixel_values=pixel_values, **options)
            output.logits[..., 7] = 1e4
            return output

    class Plain(kit.GitForCausalLM):
        """A subclass that changes nothing."""

    changed = Always7.from_pretrained(folder)
    assert changed.generate(pixel_values=pixels(1), max_new_tokens=3)[0, 1:].tolist() == [7, 7, 7]
    assert changed.generate(pixel_values=pixels(1), max_new_tokens=3, num_beams=2)[0, 1:].tolist() == [7, 7, 7]
    assert ran_on(Plain.from_pretrained(folder)) == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_run_natively(model: Any, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    wide = copy.deepcopy(model).float()
    assert native.obstacle(model) is None
    options = {"pixel_values": pixels(2), "max_new_tokens": 6}
    assert torch.equal(model.generate(**options), wide.generate(**options))


def test_copies_leave_the_engine_behind(model: Any) -> None:
    tokens = model.generate(pixel_values=pixels(2))
    assert model._native is not None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert twin._native is None
        assert torch.equal(twin.generate(pixel_values=pixels(2)), tokens)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average.module.generate(pixel_values=pixels(2)), tokens)


def test_torch_decides_draws_and_copies_of_an_image_differ(model: Any) -> None:
    images = pixels(1).repeat(6, 1, 1, 1)
    options = {"pixel_values": images, "do_sample": True, "max_new_tokens": 8, "temperature": 3.0}
    torch.manual_seed(3)
    first = model.generate(**options)
    assert len({tuple(row.tolist()) for row in first}) > 1
    torch.manual_seed(3)
    assert torch.equal(model.generate(**options), first)
    torch.manual_seed(4)
    assert not torch.equal(model.generate(**options), first)
    same = model.generate(**options, seed=1)
    assert torch.equal(model.generate(**options, seed=1), same)


def test_gitfast_options_work_on_changed_models_too(model: Any) -> None:
    allowed = [[5, 6, 3], [8, 3]]
    options = {"pixel_values": pixels(1), "allowed_token_ids": allowed, "max_new_tokens": 5}
    tokens = model.generate(**options)
    forward_hook(model)
    assert torch.equal(model.generate(**options), tokens)
    with pytest.raises(ValueError, match="output_scores is an option of transformers' search"):
        model.generate(**options, output_scores=True)


def test_as_many_tokens_as_there_are_positions(model: Any) -> None:
    positions = model.config.max_position_embeddings
    with torch.no_grad():
        model.output.bias[3] -= 1e4  # no end
    tokens = model.generate(pixel_values=pixels(1), max_new_tokens=positions, engine="reference")
    assert tokens.shape == (1, 1 + positions)


def test_a_float16_video_model_runs_natively():
    from gitfast.compat import GitForCausalLM

    model = GitForCausalLM.from_pretrained("git-tiny-video").eval()
    assert model.dtype == torch.float16
    pixels = torch.randn(1, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert model.generate(pixel_values=pixels, engine="cpu", max_new_tokens=3).shape[0] == 1


def test_pixels_may_lie_in_memory_in_any_order():
    from gitfast.compat import GitForCausalLM

    model = GitForCausalLM.from_pretrained("git-tiny", dtype="float32").eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model.generate(pixel_values=pixels, max_new_tokens=4)
    strided = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(model.generate(pixel_values=strided, max_new_tokens=4), expected)
    assert torch.equal(model.generate(pixel_values=pixels.repeat(1, 2, 1, 1)[:, :3], max_new_tokens=4), expected)
