"""The CUDA engine with the persistent kernel: the same results as with kernels of operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda.decoder import Decoder
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.cuda.persistent import PersistentRows
from gitfast.errors import EngineError
from gitfast.inputs.processor import Processor
from gitfast.ops import cuda_persistent
from gitfast.types import Generation, GenerationOptions

from support.cuda.engine_cases import IMAGES, make_engine
from support.tiny_checkpoint import write_checkpoint

TWO = IMAGES[:2]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that decoded, in order: the persistent one, or those of a step's operations."""
    names: list[str] = []
    for kind, method, name in ((PersistentRows, "enqueue", "persistent"), (Decoder, "select", "operations")):
        work = getattr(kind, method)

        def noted(*args: object, name: str = name, work=work, **more: object) -> object:
            names.append(name)
            return work(*args, **more)

        monkeypatch.setattr(kind, method, noted)
    return names


def tokens(results: list[list[Generation]]) -> list[list[tuple[list[int], str]]]:
    return [[(g.token_ids, g.finish_reason) for g in item] for item in results]


SEARCHES = {
    "greedy": GenerationOptions(max_new_tokens=4),
    "beams": GenerationOptions(num_beams=2, num_return_sequences=2, max_new_tokens=3),
    "samples": GenerationOptions(do_sample=True, top_k=3, seed=1, num_return_sequences=2, max_new_tokens=3),
}


@pytest.fixture(autouse=True)
def small_clusters(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many threads to emulate."""
    if device == "cpu":
        monkeypatch.setattr(cuda_persistent, "CLUSTER", 4)


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(device: str, name: str, cpu: CpuEngine, processor: Processor, ran: list[str]) -> None:
    options, pixels, prompt = SEARCHES[name], processor.images(TWO), processor.tokenizer.prompt
    engine, prompts = make_engine(device, decode="persistent"), [prompt(), prompt("a red")]
    assert engine.placement() == []
    results = [e.generate(e.encode(pixels), prompts, options) for e in (engine, cpu)]
    assert tokens(results[0]) == tokens(results[1])
    for got, expected in zip(*results, strict=True):
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours.token_logprobs, theirs.token_logprobs, atol=0.03)
            assert ours.score == pytest.approx(theirs.score, abs=0.1)
    assert ran == ["persistent"]
    placement = engine.placement()
    assert len(placement) == engine.config.num_attention_heads * cuda_persistent.CLUSTER
    assert len(set(placement)) == len(placement), "blocks that share a multiprocessor"


@pytest.mark.parametrize(
    ("dtype", "prefix_dtype"), [("bfloat16", "auto"), ("int8", "int8"), ("float8", "auto"), ("float16", "int8")]
)
def test_weights_and_prefixes(
    device: str, dtype: str, prefix_dtype: str, cpu: CpuEngine, processor: Processor, ran: list[str]
) -> None:
    engine, pixels, prompt = (
        make_engine(device, dtype, prefix_dtype=prefix_dtype, decode="persistent"),
        processor.images(IMAGES[:1]),
        processor.tokenizer.prompt(),
    )
    options = GenerationOptions(max_new_tokens=2)
    for _ in range(2):  # the second time over the memory of the first
        results = [e.generate(e.encode(pixels), [prompt], options) for e in (engine, cpu)]
        assert tokens(results[0]) == tokens(results[1])
    assert ran == ["persistent"] * 2


def test_tokens_are_streamed_while_the_kernel_runs(device: str, processor: Processor, ran: list[str]) -> None:
    engine, pixels, prompt = (
        make_engine(device, shallow=True, decode="persistent"),
        processor.images(TWO),
        processor.tokenizer.prompt(),
    )
    prefixes, options = engine.encode(pixels), GenerationOptions(max_new_tokens=3)
    streamed: list[tuple[int, list[int]]] = []
    results = engine.generate(prefixes, [prompt] * 2, options, lambda row, ids: streamed.append((row, list(ids))))
    assert ran == ["persistent"]
    assert streamed == [(row, [results[row][0].token_ids[step]]) for step in range(3) for row in range(2)]
    assert results == engine.generate(prefixes, [prompt] * 2, options)

    streamed.clear()
    stopped = engine.generate(
        prefixes, [prompt] * 2, options, lambda row, ids: streamed.append((row, [])) or len(streamed) < 4
    )
    assert len(streamed) == 4
    for item, whole in zip(stopped, results, strict=True):
        assert item[0].token_ids == whole[0].token_ids[:2]
        assert item[0].score == pytest.approx(sum(whole[0].token_logprobs[:2]))
        assert item[0].finish_reason == "length"


def test_what_few_rows_are_not(device: str, processor: Processor, ran: list[str]) -> None:
    """More rows, prefixes of several lengths, and rules take the kernels of operations."""
    engine, pixels, prompt = (
        make_engine(device, shallow=True, decode="persistent"),
        processor.images(TWO),
        processor.tokenizer.prompt(),
    )
    prefixes = engine.encode(pixels)
    options = GenerationOptions(max_new_tokens=2)
    nine = engine.generate([prefixes[0]] * 9, [prompt] * 9, options)
    mixed = engine.generate([prefixes[0], None], [prompt] * 2, options)
    ruled = engine.generate(prefixes[:1], [prompt], GenerationOptions(max_new_tokens=2, repetition_penalty=1.01))
    assert set(ran) == {"operations"}
    ran.clear()
    alone = engine.generate(prefixes[:1], [prompt], options)
    assert ran == ["persistent"]
    assert tokens(nine)[8] == tokens(mixed)[0] == tokens(ruled)[0] == tokens(alone)[0]


def test_rows_of_one_call_do_not_depend_on_each_other(device: str, processor: Processor) -> None:
    engine, prompt = make_engine(device, "bfloat16", shallow=True, decode="persistent"), processor.tokenizer.prompt()
    first, second = engine.encode(processor.images(TWO))
    options = GenerationOptions(max_new_tokens=3)
    together = engine.generate([first, second], [prompt] * 2, options)
    assert together[1:] == engine.generate([second], [prompt], options)


def test_blocks_that_waited_in_vain(
    device: str, processor: Processor, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is clear, and the engine goes on with the kernels of operations."""
    engine, prompt = make_engine(device, shallow=True, decode="persistent"), processor.tokenizer.prompt()
    prefix, options = engine.encode(processor.images(IMAGES[:1])), GenerationOptions(max_new_tokens=2)
    expected = engine.generate(prefix, [prompt], options)
    (search,) = engine._searches.values()
    assert search._persistent is not None
    with torch.inference_mode():
        search._persistent._broken[0] = 1
    with monkeypatch.context() as patch:
        patch.setattr(PersistentRows, "enqueue", lambda *_: None)
        with pytest.raises(EngineError, match="blocks of one kernel waited in vain"):
            engine.generate(prefix, [prompt], options)
    ran.clear()
    assert tokens(engine.generate(prefix, [prompt], options)) == tokens(expected)
    assert set(ran) == {"operations"}


def test_models_the_kernels_do_not_take(device: str, tmp_path: Path, ran: list[str]) -> None:
    """Heads of another width take the kernels of operations."""
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64, num_attention_heads=4)
    )
    engine = CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, decode="persistent")
    (item,) = engine.generate([None], [[checkpoint.config.bos_token_id]], GenerationOptions(max_new_tokens=2))
    assert item[0].token_ids
    assert set(ran) == {"operations"}


def test_a_mode_that_is_none(device: str) -> None:
    with pytest.raises(ValueError, match="decode: expected 'operations', 'persistent', got 'fast'"):
        make_engine(device, decode="fast")
