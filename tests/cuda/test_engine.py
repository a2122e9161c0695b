"""The CUDA engine, on a device and over emulated kernels: the bundled model says what the CPU engine says."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.cli import info, main
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda.encoder import Encoder
from gitfast.engines.cuda.engine import CudaEngine, CudaPrefix
from gitfast.engines.cuda.search import SearchMode
from gitfast.errors import EngineError
from gitfast.inputs.processor import Processor
from gitfast.model import Model
from gitfast.ops import cuda
from gitfast.types import Generation, GenerationOptions

from support.cuda.engine_cases import IMAGES, MODEL, make_engine
from support.tiers import slow
from support.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def pixels(processor: Processor) -> np.ndarray:
    return processor.images(IMAGES)


@pytest.fixture(scope="module")
def captioned(cpu: CpuEngine, processor: Processor, pixels: np.ndarray) -> list[list[Generation]]:
    """Captions by the CPU engine."""
    return cpu.generate(cpu.encode(pixels), [processor.tokenizer.prompt()] * len(IMAGES), GenerationOptions())


def tokens(results: list[list[Generation]]) -> list[list[list[int]]]:
    return [[g.token_ids for g in item] for item in results]


@pytest.mark.parametrize("dtype", ["float16", slow("bfloat16"), "int8", slow("float8")])
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


@pytest.mark.slow
def test_captions_over_prefixes_of_int8(
    device: str, processor: Processor, pixels: np.ndarray, captioned: list[list[Generation]]
) -> None:
    engine, prompts = make_engine(device, prefix_dtype="int8"), [processor.tokenizer.prompt()] * len(IMAGES)
    prefixes = engine.encode(pixels)
    results = engine.generate(prefixes, prompts, GenerationOptions())
    assert tokens(results) == tokens(captioned)
    for (got,), (expected,) in zip(results, captioned, strict=True):
        np.testing.assert_allclose(got.token_logprobs, expected.token_logprobs, atol=0.05)
    # Every search, a single prefix among them, and rows without an image.
    for options in (GenerationOptions(num_beams=2), GenerationOptions(repetition_penalty=1.01)):
        mixed = engine.generate([*prefixes[:1], None], prompts[:2], options)
        assert mixed[0][0].token_ids == captioned[0][0].token_ids
    (scores,) = engine.score(prefixes[:1], [[*prompts[0], *captioned[0][0].token_ids]])
    np.testing.assert_allclose(scores, captioned[0][0].token_logprobs, atol=0.05)


def test_tasks_hand_over_bytes(
    device: str, processor: Processor, captioned: list[list[Generation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, given = open_checkpoint(MODEL), []
    engine = CudaEngine.from_weights(
        checkpoint.config,
        checkpoint.weights,
        device=device,
        dtype="float16",
        normalization=processor.image_processor.normalization,
    )
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda pixels, **_: given.append(pixels.dtype) or encode(pixels))
    results = Model(engine, processor, checkpoint.config).caption(IMAGES, max_new_tokens=3)
    assert given == [np.uint8]
    assert [list(result.token_ids) for result in results] == [item[0].token_ids[:3] for item in captioned]


def test_info_shows_what_is_kept(
    device: str, processor: Processor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(device, "int8", prefix_dtype="int8")
    monkeypatch.setattr(info, "load", lambda *_, **__: Model(engine, processor, engine.config))
    assert main(["info", "--model", str(MODEL), "--engine", "cuda"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (plan,) = engine.plans()
    assert plan.nbytes > 2 * 3 * 2 * 65 * (64 + 4)  # a prefix, its scales, and what it is made of
    how = "a graph" if device == "cuda" else "kernel by kernel"
    assert lines[lines.index("loaded") + 1 :] == [
        "  engine          cuda",
        "  dtype           int8",
        f"  prefix bytes    {2 * 3 * 2 * 65 * (64 + 4):,}",
        f"  kept            for batches of 1, 64 x 64 pixels: {how}, {plan.nbytes:,} bytes",
    ]


def test_a_plan_serves_calls_of_one_shape(
    device: str, processor: Processor, pixels: np.ndarray, captioned: list[list[Generation]]
) -> None:
    engine, options = make_engine(device), GenerationOptions(max_new_tokens=3)
    for image in (0, 1, 0):
        results = engine.generate(engine.encode(pixels[image : image + 1]), [processor.tokenizer.prompt()], options)
        assert tokens(results) == [[captioned[image][0].token_ids[:3]]]
        assert results[0][0].finish_reason == "length"
    assert len(engine._searches) == 1
    engine.generate([None], [processor.tokenizer.prompt("a red")], options)
    assert len(engine._searches) == 2


def test_the_search_on_the_host_agrees_with_the_device(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine, told = make_engine(device, shallow=True), []
    prefix, prompt = engine.encode(pixels[:1]), [processor.tokenizer.prompt()]
    options = GenerationOptions(max_new_tokens=4)
    alone = engine.generate(prefix, prompt, options)
    streamed = engine.generate(prefix, prompt, options, lambda row, ids: told.extend(ids))
    assert tokens(streamed) == tokens(alone) == [[told]]
    np.testing.assert_allclose(streamed[0][0].token_logprobs, alone[0][0].token_logprobs, atol=1e-5)


SEARCHES = {
    "greedy": GenerationOptions(max_new_tokens=6),
    "beams": GenerationOptions(num_beams=3, num_return_sequences=2, max_new_tokens=5),
    "long beams": GenerationOptions(
        num_beams=2, num_return_sequences=2, max_new_tokens=7, length_penalty=2.0, early_stopping="never"
    ),
    "short beams": GenerationOptions(num_beams=2, max_new_tokens=9, length_penalty=-1.0, early_stopping=True),
    "the paper's beams": GenerationOptions(
        num_beams=4, num_return_sequences=4, max_new_tokens=4, length_penalty=0.6, length_penalty_form="paper"
    ),
    "samples": GenerationOptions(do_sample=True, temperature=0.8, seed=1, num_return_sequences=2, max_new_tokens=4),
    "samples of a few": GenerationOptions(
        do_sample=True, top_k=3, seed=1, num_return_sequences=2, max_new_tokens=4
    ),
    "samples of a share": GenerationOptions(
        do_sample=True, top_k=9, top_p=0.9, temperature=1.3, seed=2, num_return_sequences=3, max_new_tokens=4
    ),
}  # fmt: skip
# Two candidates for the last of the paper's beams: to the CPU engine their scores are 0.005 apart, and those of float16
# are 0.003 from its. Either may be found where the two are compared.
TIED = [[6, 52, 64, 83], [6, 52, 64, 98]]


FAST = ("greedy", "beams", "samples of a few")


@pytest.mark.parametrize("name", [name if name in FAST else slow(name) for name in SEARCHES])
def test_searches(
    device: str, name: str, cpu: CpuEngine, processor: Processor, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same results on the device, on the host over its logits, and by the CPU engine."""
    engine, prompt, options = make_engine(device), processor.tokenizer.prompt, SEARCHES[name]
    ours, theirs = engine.encode(pixels[:2]), cpu.encode(pixels[:2])
    encoded = engine.stats.encoded_images
    # Questions of several lengths on one prefix, one on another, and no image at all.
    prompts = [prompt("how many shapes are there ?"), prompt("what color ?"), prompt(), prompt()]
    results = [
        which.generate([prefixes[0], prefixes[0], prefixes[1], None], prompts, options)
        for which, prefixes in ((engine, ours), (cpu, theirs))
    ]
    assert len(engine._searches) == 1
    assert engine.stats.encoded_images == encoded
    monkeypatch.setattr(SearchMode, "of", lambda *_: None)
    results.append(engine.generate([ours[0], ours[0], ours[1], None], prompts, options))
    assert len(engine._searches) == 1
    for other, tolerance in ((1, 0.03), (2, 1e-4)):
        for got, expected in zip(*(itertools.chain(*found) for found in (results[0], results[other])), strict=True):
            tied = other == 1 and sorted([got.token_ids, expected.token_ids]) == TIED
            assert tied or got.token_ids == expected.token_ids
            assert got.finish_reason == expected.finish_reason
            assert got.score == pytest.approx(expected.score, abs=tolerance * len(got.token_ids))
            np.testing.assert_allclose(got.token_logprobs, expected.token_logprobs, atol=tolerance)


@pytest.mark.slow
def test_a_plan_of_beams_reads_what_changes(
    device: str, cpu: CpuEngine, processor: Processor, pixels: np.ndarray
) -> None:
    """Lengths, penalties and stopping are data; the steps after all beams have ended are not done."""
    engine, prompt = make_engine(device), [processor.tokenizer.prompt()]
    ours, theirs = engine.encode(pixels[:1]), cpu.encode(pixels[:1])
    for length_penalty, early_stopping, limit in ((1.0, False, 14), (-2.0, True, 15), (3.0, "never", 3)):
        options = GenerationOptions(
            num_beams=2, length_penalty=length_penalty, early_stopping=early_stopping, max_new_tokens=limit
        )
        before = engine.stats.decode_steps
        results = engine.generate(ours, prompt, options)
        assert tokens(results) == tokens(cpu.generate(theirs, prompt, options))
        steps = engine.stats.decode_steps - before + 1
        assert steps < limit or limit == 3, "the search did not stop early"
    assert len(engine._searches) == 1


def test_scores(device: str, cpu: CpuEngine, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device), processor.tokenizer.prompt
    sequences = [prompt("a red square"), prompt("two"), prompt("five red squares")]
    results = [e.score([*e.encode(pixels[:1]) * 2, None], sequences) for e in (engine, cpu)]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, atol=0.02)


def test_a_row_does_not_depend_on_the_others(device: str, processor: Processor, pixels: np.ndarray) -> None:
    """Alone, norms are part of the product behind them; of more than four rows, they have a kernel of their own."""
    engine, prompt = make_engine(device, "bfloat16"), processor.tokenizer.prompt
    first, second = engine.encode(pixels[:2])
    options = GenerationOptions(max_new_tokens=3)
    prompts = [prompt(), prompt(), prompt("what color ?"), prompt("two"), prompt("a red")]
    together = engine.generate([first, second, first, first, second], prompts, options)
    alone = engine.generate([second], [prompt()], options) + engine.generate([first], [prompt("what color ?")], options)
    assert [together[1], together[2]] == alone


@pytest.mark.parametrize(("rows", "norms", "normed_products"), [(1, 1, 5), (4, 1, 5), (5, 6, 0)])
def test_norms_of_few_rows_have_no_kernels_of_their_own(
    device: str, processor: Processor, monkeypatch: pytest.MonkeyPatch, rows: int, norms: int, normed_products: int
) -> None:
    """All but that of the embedding and that ahead of the head, of three layers."""
    engine, kernels, called = make_engine(device), cuda._kernels, Counter()

    class Counting:
        def __init__(self, module: ModuleType) -> None:
            self._module = module

        def __getattr__(self, name: str) -> Any:
            called[name] += 1
            return getattr(self._module, name)

    monkeypatch.setattr(cuda, "_kernels", lambda x: Counting(kernels(x)))
    engine.generate([None] * rows, [processor.tokenizer.prompt()] * rows, GenerationOptions(max_new_tokens=1))
    steps = called["embed_layer_norm"]
    assert steps == engine.stats.decode_steps + 1
    assert (called["add_layer_norm"], called["norm_linear"]) == (norms * steps, normed_products * steps)


def test_prefixes_of_another_engine(device: str, processor: Processor, pixels: np.ndarray) -> None:
    engine, prompt = make_engine(device, shallow=True), processor.tokenizer.prompt()
    (prefix,) = engine.encode(pixels[:1])
    other = CudaPrefix(prefix.keys, prefix.values, engine=-1)
    for call in (
        lambda: engine.generate([other], [prompt], GenerationOptions()),
        lambda: engine.score([other], [prompt]),
    ):
        with pytest.raises(ValueError, match=r"prefixes\[0\]: was encoded by another engine"):
            call()


def test_a_dtype_there_is_not(device: str) -> None:
    with pytest.raises(ValueError, match="dtype: expected 'bfloat16', 'float16', 'int8', 'float8', got 'float32'"):
        make_engine(device, "float32")


def test_bytes_that_do_not_suit(device: str, processor: Processor) -> None:
    engine = make_engine(device, shallow=True, normalization=processor.image_processor.normalization)
    for shape, message in (
        ((1, 3, 64, 64), r"expected bytes \(B, H, W, 3\) or \(B, T, H, W, 3\), got \(1, 3, 64, 64\)"),
        ((64, 64, 3), r"expected bytes \(B, H, W, 3\) or"),
        ((1, 64, 48, 3), "expected images of 64x64, got 64x48"),
        ((1, 2, 64, 64, 3), "not a video model"),
        ((0, 64, 64, 3), "at least one image"),
    ):
        with pytest.raises(ValueError, match=f"pixel_values: .*{message}"):
            engine.encode(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="pixel_values: expected float32; this engine was not told how to normalise"):
        make_engine(device, shallow=True).encode(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("name", ["greedy", "beams", "samples", "samples of a few"])
def test_logits_that_are_no_numbers(device: str, name: str, processor: Processor, pixels: np.ndarray) -> None:
    engine = make_engine(device, shallow=True)
    prefix = engine.encode(pixels[:1])[0]
    broken = CudaPrefix(prefix.keys, torch.full_like(prefix.values, torch.nan), prefix.engine)
    with pytest.raises(ValueError, match="logits: NaN in row 0"):
        engine.generate([broken], [processor.tokenizer.prompt()], SEARCHES[name])


def test_memory_that_does_not_suffice(
    device: str, processor: Processor, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(device, shallow=True)

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", fail)
        with pytest.raises(EngineError, match="cuda engine: tried to allocate 9 GiB"):
            engine.encode(pixels[:1])
    assert len(engine.encode(pixels[:1])) == 1


def test_memory_that_does_not_suffice_for_a_search(
    device: str,
    processor: Processor,
    pixels: np.ndarray,
    captioned: list[list[Generation]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Running out at the start, in the second step or during a capture drops the plan, and nothing more."""
    engine, prompt, options = make_engine(device), [processor.tokenizer.prompt()], GenerationOptions(max_new_tokens=4)
    prefix = engine.encode(pixels[:1])
    advance = cuda.advance_search
    for steps in range(3):
        left = iter(range(steps))

        def advance_or_fail(*args: object, left: Iterator[int] = left, **kwargs: object) -> None:
            if next(left, None) is None:
                raise torch.OutOfMemoryError("tried to allocate 9 GiB")
            advance(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(cuda, "advance_search", advance_or_fail)
            with pytest.raises(EngineError, match="cuda engine: tried to allocate 9 GiB"):
                engine.generate(prefix, prompt, options)
        assert not engine._searches
        assert tokens(engine.generate(prefix, prompt, options)) == [[captioned[0][0].token_ids[:4]]]
        engine._searches.clear()


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, SearchMode(1, False, False, 1)),
        ({"temperature": 3.0, "top_k": 100}, SearchMode(1, False, False, 1)),
        ({"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 2}, SearchMode(4, True, False, 8)),
        ({"num_beams": 16}, SearchMode(16, True, False, 32)),
        ({"num_beams": 17}, None),
        ({"do_sample": True, "num_return_sequences": 3}, SearchMode(3, False, True, 1, 1.0)),
        ({"do_sample": True, "temperature": 1e-35}, None),
        ({"do_sample": True, "top_k": 63, "temperature": 2.0}, SearchMode(1, False, True, 64)),
        ({"do_sample": True, "top_k": 64}, None),
        ({"do_sample": True, "top_p": 0.9}, None),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9, "min_p": 0.1}, SearchMode(1, False, True, 6)),
        ({"suppress_tokens": (3,)}, None),
        ({"min_new_tokens": 1}, None),
        ({"num_beams": 4, "repetition_penalty": 1.5}, None),
    ],
    ids=str,
)
def test_searches_that_run_on_the_device(options: dict[str, Any], mode: SearchMode | None) -> None:
    assert SearchMode.of(GenerationOptions(**options), 30522) == mode


def test_few_tokens_are_all_drawn_from() -> None:
    options = GenerationOptions(do_sample=True, top_p=0.9)
    assert SearchMode.of(options, 64) == SearchMode(1, False, True, 64)
    assert SearchMode.of(options, 65) is None
    assert SearchMode.of(GenerationOptions(num_beams=4), 5) == SearchMode(4, True, False, 5)


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
