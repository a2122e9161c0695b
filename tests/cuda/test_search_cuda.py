"""The CUDA kernels of searches on a device: they find what csrc/search finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gitfast import _C

from support.cuda.search_cases import make_case

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "cuda") or not torch.cuda.is_available(), reason="needs a CUDA device and a build with CUDA"
)


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({}, 1),
        ({"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6, "length_penalty_form": "paper"}, 8),
        ({"num_beams": 16, "num_return_sequences": 2, "early_stopping": "never", "length_penalty": 2.0}, 32),
        ({"do_sample": True, "top_k": 40, "top_p": 0.8, "num_return_sequences": 3}, 41),
    ],
    ids=str,
)
def test_equals_the_search_of_the_host(options: dict[str, Any], choices: int) -> None:
    prompts = [[1 + i % 7] * (1 + i % 5) for i in range(40)]
    for seed in range(5):
        case = make_case(300, prompts, seed=seed, max_new_tokens=20, **options)
        stream = torch.cuda.current_stream().cuda_stream
        assert case.error(case.on_device(_C.cuda, case.likeliest(choices), "cuda", stream)) <= 1
