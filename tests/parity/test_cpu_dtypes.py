"""The CPU engine with weights of fewer bits, against transformers in bfloat16, both measured against float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from gitfast import _C
from gitfast.engines.cpu import CpuEngine
from gitfast.types import GenerationOptions

from support.parity_cases import EOS, NEW_TOKENS, Case, published_case, published_weights


@pytest.fixture(scope="module", params=["git-base", "git-base-vqav2", "git-large-vatex"])
def case(request) -> Case:
    return published_case(request.param, seed=60, attention_gain=4)


def logits_of(case: Case, engine: CpuEngine) -> np.ndarray:
    """Logits at every golden token of both rows."""
    prefixes = engine.encode(case.pixels.numpy())
    return np.concatenate(engine.logits(prefixes, [case.sequence(row) for row in range(2)]))


def error(got: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.square(got - truth).mean()))


def transformers_logits(case: Case, model: torch.nn.Module) -> np.ndarray:
    tokens = case.config.num_image_tokens
    return np.concatenate([x.logits[0, tokens:].double().numpy() for x in case._one_pass(model)])


@pytest.mark.parametrize("isa", _C.available_isas())
def test_bfloat16_is_no_further_from_the_truth_than_transformers(case, isa):
    engine = CpuEngine.from_weights(case.config, published_weights(case.theirs), dtype="bfloat16", isa=isa)
    truth = transformers_logits(case, case.exact)
    theirs = error(transformers_logits(case, copy.deepcopy(case.theirs).bfloat16()), truth)
    ours = error(logits_of(case, engine), truth)
    print(f"bfloat16, {isa}: RMS error {ours:.4f}, transformers {theirs:.4f}")
    assert ours <= theirs
    assert ours > 0, "bfloat16 weights leave a trace"


@pytest.mark.parametrize("dtype", ["int8", "w8a8"])
@pytest.mark.parametrize("isa", _C.available_isas())
def test_int8_is_near(case, isa, dtype):
    """Random weights are the hardest: no channel has outliers that training would have made, and no margin is wide."""
    engine = CpuEngine.from_weights(case.config, published_weights(case.theirs), dtype=dtype, isa=isa)
    truth, got = transformers_logits(case, case.exact), logits_of(case, engine)
    assert 0 < error(got, truth) <= 0.1 * truth.std()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "w8a8"])
def test_rows_do_not_depend_on_their_batch(case, dtype):
    engine = CpuEngine.from_weights(case.config, published_weights(case.theirs), dtype=dtype, num_threads=2)
    options = GenerationOptions(max_new_tokens=NEW_TOKENS, suppress_tokens=[EOS])
    pixels, rows = case.pixels.numpy(), 15
    prefixes = engine.encode(np.concatenate([pixels] * 8)[:rows])
    together = engine.generate(prefixes, [case.prompts[i % 2] for i in range(rows)], options)
    alone = [engine.generate(engine.encode(pixels[i : i + 1]), [case.prompts[i]], options)[0] for i in range(2)]
    assert together == [alone[i % 2] for i in range(rows)]


def test_memory_shrinks_with_the_dtype(case):
    weights = published_weights(case.theirs)
    held = {
        dtype: CpuEngine.from_weights(case.config, weights, dtype=dtype).nbytes
        for dtype in ("float32", "bfloat16", "int8", "w8a8")
    }
    total = sum(x.nbytes for x in weights.values())
    assert held["float32"] <= 1.15 * total
    assert held["bfloat16"] <= 0.6 * total
    assert held["w8a8"] == held["int8"] < held["bfloat16"]


def test_half_precision_checkpoints(case):
    halves = {name: x.astype(np.float16) for name, x in published_weights(case.theirs).items()}
    wide = {name: x.astype(np.float32) for name, x in halves.items()}
    for dtype in ("bfloat16", "int8"):
        a, b = (logits_of(case, CpuEngine.from_weights(case.config, w, dtype=dtype)) for w in (halves, wide))
        np.testing.assert_array_equal(a, b)
