"""The CUDA engine, on a device and over emulated kernels: the bundled model says what the CPU engine says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import write_checkpoint

from gitfast import _C
from gitfast.checkpoint import open_checkpoint
from gitfast.engines.base import Generation, GenerationOptions
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda import CudaEngine, CudaPrefix
from gitfast.errors import EngineError
from gitfast.ops import cuda
from gitfast.processor import Processor

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "git-tiny"
IMAGES = sorted((ROOT / "examples" / "images").glob("*.png"))[:3]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the engine runs: on "cpu" its kernels are emulated."""
    if request.param == "cuda":
        if not hasattr(_C, "cuda") or not torch.cuda.is_available():
            pytest.skip("needs a CUDA device and a build with CUDA")
    else:
        emulation = request.getfixturevalue("emulation")
        emulation.set_order("forward")
        monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
        monkeypatch.setattr(cuda, "_stream", lambda _: 0)
    return request.param


def make_engine(device: str, dtype: str = "float16") -> CudaEngine:
    checkpoint = open_checkpoint(MODEL)
    return CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=dtype)


@pytest.fixture(scope="module")
def cpu() -> CpuEngine:
    checkpoint = open_checkpoint(MODEL)
    return CpuEngine.from_weights(checkpoint.config, checkpoint.weights)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(MODEL, open_checkpoint(MODEL).config)


@pytest.fixture(scope="module")
def pixels(processor: Processor) -> np.ndarray:
    return processor.images(IMAGES)


@pytest.fixture(scope="module")
def captioned(cpu: CpuEngine, processor: Processor, pixels: np.ndarray) -> list[list[Generation]]:
    """What the CPU engine says of the images."""
    return cpu.generate(cpu.encode(pixels), [processor.tokenizer.prompt()] * len(IMAGES), GenerationOptions())


def tokens(results: list[list[Generation]]) -> list[list[list[int]]]:
    return [[g.token_ids for g in item] for item in results]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float8"])
def test_captions(
    device: str, dtype: str, processor: Processor, pixels: np.ndarray, captioned: list[list[Generation]]
) -> None:
    engine = make_engine(device, dtype)
    prefixes = engine.encode(pixels)
    assert [p.num_tokens for p in prefixes] == [65] * len(IMAGES)
    assert prefixes[0].nbytes == 2 * 3 * 65 * 128 * 2
    results = engine.generate(prefixes, [processor.tokenizer.prompt()] * len(IMAGES), GenerationOptions())
    assert tokens(results) == tokens(captioned)
    tolerance = {"float16": 0.01, "bfloat16": 0.1}.get(dtype, 0.3)
    for (got,), (expected,) in zip(results, captioned, strict=True):
        assert got.finish_reason == expected.finish_reason == "stop"
        np.testing.assert_allclose(got.token_logprobs, expected.token_logprobs, atol=tolerance)
        assert got.score == pytest.approx(sum(got.token_logprobs))
    assert engine.stats.encoded_images == len(IMAGES)


def test_a_plan_serves_calls_of_one_shape(
    device: str, processor: Processor, pixels: np.ndarray, captioned: list[list[Generation]]
) -> None:
    engine, options = make_engine(device), GenerationOptions(max_new_tokens=3)
    for image in (0, 1, 0):
        results = engine.generate(engine.encode(pixels[image : image + 1]), [processor.tokenizer.prompt()], options)
        assert tokens(results) == [[captioned[image][0].token_ids[:3]]]
        assert results[0][0].finish_reason == "length"
    assert len(engine._plans) == 1
    engine.generate([None], [processor.tokenizer.prompt("a red")], options)
    assert len(engine._plans) == 2


def test_the_search_on_the_host_agrees_with_the_device(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine, told = make_engine(device), []
    prefix, prompt = engine.encode(pixels[:1]), [processor.tokenizer.prompt()]
    alone = engine.generate(prefix, prompt, GenerationOptions())
    streamed = engine.generate(prefix, prompt, GenerationOptions(), lambda row, ids: told.extend(ids))
    assert tokens(streamed) == tokens(alone) == [[told]]
    np.testing.assert_allclose(streamed[0][0].token_logprobs, alone[0][0].token_logprobs, atol=1e-5)


def test_beams_samples_and_questions(device: str, cpu: CpuEngine, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device), processor.tokenizer.prompt
    ours, theirs = engine.encode(pixels[:2]), cpu.encode(pixels[:2])
    encoded = engine.stats.encoded_images
    # Questions of several lengths on one prefix, one on another, and no image at all.
    prompts = [prompt("how many shapes are there ?"), prompt("what color ?"), prompt(), prompt()]
    for options in (
        GenerationOptions(num_beams=3, num_return_sequences=2, max_new_tokens=5),
        GenerationOptions(do_sample=True, top_k=3, seed=1, num_return_sequences=2, max_new_tokens=4),
    ):
        results = [
            which.generate([prefixes[0], prefixes[0], prefixes[1], None], prompts, options)
            for which, prefixes in ((engine, ours), (cpu, theirs))
        ]
        assert tokens(results[0]) == tokens(results[1])
    assert engine.stats.encoded_images == encoded


def test_scores(device: str, cpu: CpuEngine, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device), processor.tokenizer.prompt
    sequences = [prompt("a red square"), prompt("two"), prompt("five red squares")]
    results = [e.score([*e.encode(pixels[:1]) * 2, None], sequences) for e in (engine, cpu)]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, atol=0.02)


def test_a_row_does_not_depend_on_the_others(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device, "bfloat16"), processor.tokenizer.prompt
    first, second = engine.encode(pixels[:2])
    options = GenerationOptions(max_new_tokens=3)
    together = engine.generate([first, second, first], [prompt(), prompt(), prompt("what color ?")], options)
    alone = engine.generate([second], [prompt()], options) + engine.generate([first], [prompt("what color ?")], options)
    assert [together[1], together[2]] == alone


def test_what_cannot_be_is_named(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device), processor.tokenizer.prompt()
    prefix, options = engine.encode(pixels[:1])[0], GenerationOptions()
    other = CudaPrefix(prefix.keys, prefix.values, engine=-1)
    for prefixes, prompts, message in (
        ([other], [prompt], r"prefixes\[0\]: was encoded by another engine"),
        ([prefix], [prompt, prompt], "prefixes: expected one for each of the 2 prompts, got 1"),
        ([prefix], [[]], r"prompts\[0\]: expected at least one token id"),
        ([prefix], [[5000]], r"prompts\[0\]: token id 5000 is outside the vocabulary of 109"),
        ([prefix], [prompt * 1000], r"prompts\[0\]: .* exceed the model's"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate(prefixes, prompts, options)
    with pytest.raises(ValueError, match="dtype: expected 'bfloat16', 'float16', 'int8', 'float8', got 'float32'"):
        make_engine(device, "float32")


def test_logits_that_are_no_numbers(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine = make_engine(device)
    prefix = engine.encode(pixels[:1])[0]
    broken = CudaPrefix(prefix.keys, torch.full_like(prefix.values, torch.nan), prefix.engine)
    with pytest.raises(ValueError, match="logits: NaN in row 0"):
        engine.generate([broken], [processor.tokenizer.prompt()], GenerationOptions(max_new_tokens=2))


def test_memory_that_does_not_suffice(
    device: str, processor: Processor, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(device)

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(engine._model, "image_tokens", fail)
        with pytest.raises(EngineError, match="cuda engine: tried to allocate 9 GiB"):
            engine.encode(pixels[:1])
    assert len(engine.encode(pixels[:1])) == 1


def test_heads_the_kernels_do_not_take(device: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64, num_attention_heads=8)
    )
    with pytest.raises(
        EngineError, match="cuda engine: does not take this model in bfloat16: head_dim: expected one of"
    ):
        CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device)


def test_widths_the_kernels_do_not_take(device: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"))
    with pytest.raises(EngineError, match="cuda engine: does not take this model in int8: weight: expected rows of"):
        CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype="int8")
