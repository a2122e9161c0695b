"""Encoding on a CUDA device, and over emulated kernels: the reference's prefixes, whatever the batch and the layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gitfast.checkpoints.checkpoint import open_checkpoint
from gitfast.engines.cuda import images as cuda_images
from gitfast.engines.cuda.encoder import Encoder
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.engines.cuda.images import BUCKETS, next_bucket
from gitfast.engines.reference import ReferenceEngine
from gitfast.errors import EngineError
from gitfast.inputs.processor import Processor
from gitfast.types import Normalization

from support.cuda.encoder_cases import (
    assert_near,
    expected,
    layer_values,
    make_engine,
    random_pixels,
    values,
    write_model,
)
from support.paths import ROOT

NORMALIZATION = Normalization(factor=1 / 255, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


@pytest.mark.parametrize(
    ("shape", "frames"),
    [
        ((3, 3, 32, 32), None),
        ((2, 3, 24, 47), None),
        ((1, 3, 8, 200), None),
        ((2, 2, 3, 32, 32), 3),
        ((2, 3, 32, 32), 3),
    ],
    ids=["images", "rectangles", "a row of patches", "clips", "images on a video model"],
)
def test_prefixes_are_the_reference_s(device: str, tmp_path: Path, shape: tuple[int, ...], frames: int | None) -> None:
    folder = write_model(tmp_path, num_image_with_embedding=frames)
    engine, pixels = make_engine(folder, device), random_pixels(*shape)
    for _ in range(3):  # at first, captured, replayed
        assert_near(engine.encode(pixels, interpolate_positions=True), expected(folder, pixels), 0.01)


@pytest.mark.parametrize("patch_size", [8, 6])
@pytest.mark.parametrize("clips", [False, True], ids=["images", "clips"])
def test_bytes_are_normalised(device: str, tmp_path: Path, patch_size: int, clips: bool) -> None:
    config = open_checkpoint(write_model(tmp_path / "other")).config
    vision = {**config.to_dict()["vision_config"], "patch_size": patch_size}
    folder = write_model(tmp_path / "model", vision_config=vision, num_image_with_embedding=2)
    engine = make_engine(folder, device, normalization=NORMALIZATION)
    shape = (2, 2, 32, 32, 3) if clips else (3, 32, 32, 3)
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    normalised = (given * np.float32(1 / 255) - np.float32(NORMALIZATION.mean)) / np.float32(NORMALIZATION.std)
    floats = np.ascontiguousarray(np.moveaxis(normalised, -1, -3))
    from_bytes, from_floats = engine.encode(given), engine.encode(floats)
    assert_near(from_bytes, [values(prefix) for prefix in from_floats], 1e-3)
    assert_near(from_bytes, expected(folder, floats), 0.01)


def test_batches_of_any_size(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path)
    pixels = random_pixels(11, 3, 32, 32)
    truth = expected(folder, pixels)
    engine = make_engine(folder, device)
    for count, padded in ((3, 1), (5, 0), (11, 1)):
        before = engine.padded_images
        assert_near(engine.encode(pixels[:count]), truth[:count], 0.01)
        assert engine.padded_images - before == padded
    assert {plan.images for plan in engine.plans()} == {1, 4, 8}
    assert engine.stats.encoded_images == 19
    assert len(engine.plans()) == 3
    assert all(plan.nbytes > 0 for plan in engine.plans())
    if device == "cuda":
        assert all(plan.captured for plan in engine.plans() if plan.images == 4)
    # Bounded by tokens: 17 of an image.
    monkeypatch.setattr(cuda_images, "_MAX_BATCH_TOKENS", 2 * 17)
    engine = make_engine(folder, device)
    assert_near(engine.encode(pixels[:5]), truth[:5], 0.01)
    assert {plan.images for plan in engine.plans()} == {1, 2}


def test_what_a_batch_leaves_is_its_images_own(device: str, tmp_path: Path) -> None:
    """Neither the next batch nor another image of the batch holds or changes a prefix."""
    engine = make_engine(write_model(tmp_path), device)
    prefixes = engine.encode(random_pixels(2, 3, 32, 32))
    before = [values(prefix) for prefix in prefixes]
    engine.encode(random_pixels(2, 3, 32, 32) + 1)
    for prefix, kept in zip(prefixes, before, strict=True):
        np.testing.assert_array_equal(values(prefix), kept)
        assert prefix.keys.untyped_storage().nbytes() == prefix.nbytes


def test_sizes_of_batches() -> None:
    for largest in BUCKETS:
        for images in range(1, 200):
            left, computed = images, 0
            while left > 0:
                bucket = next_bucket(left, largest)
                assert bucket in BUCKETS
                assert bucket <= largest
                assert 4 * min(left, bucket) >= 3 * bucket
                left -= bucket
                computed += bucket
            assert 3 * computed <= 4 * images
    assert [next_bucket(images, 64) for images in (1, 3, 5, 6, 33, 48, 64, 100)] == [1, 4, 4, 8, 32, 64, 64, 64]


def test_plans_of_rare_sizes_go(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_images, "_MAX_PLANS", 2)
    engine = make_engine(write_model(tmp_path), device)
    for height, width in ((32, 32), (16, 24), (32, 32), (24, 16)):
        engine.encode(random_pixels(1, 3, height, width), interpolate_positions=True)
    assert [(plan.height, plan.width) for plan in engine.plans()] == [(32, 32), (24, 16)]
    assert engine.plans()[0].label == "batches of 1, 32 x 32 pixels"


def test_memory_for_small_batches_only(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path)
    pixels = random_pixels(9, 3, 32, 32)
    engine, compute = make_engine(folder, device), Encoder.__call__

    def limited(self: Encoder, inputs, kind, out) -> None:
        if len(out.data) > 2:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        compute(self, inputs, kind, out)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", limited)
        for _ in range(2):  # the second knows
            assert_near(engine.encode(pixels), expected(folder, pixels), 0.01)
            assert {plan.images for plan in engine.plans()} == {1, 2}
    with monkeypatch.context() as patch:
        patch.setattr(cuda_images, "_split", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
        with pytest.raises(EngineError, match="cuda engine: none at all"):
            engine.encode(pixels[:1])
    assert engine.plans() == []
    assert_near(engine.encode(pixels[:2]), expected(folder, pixels[:2]), 0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_further_from_the_truth_than_torch(device: str, dtype: str) -> None:
    """RMS error over all keys and values of a trained model."""
    checkpoint = open_checkpoint(ROOT / "models" / "git-tiny")
    pixels = Processor.from_folder(checkpoint.folder, checkpoint.config).images(
        sorted((ROOT / "examples" / "images").glob("*.png"))[:3]
    )

    def of_torch(which: torch.dtype) -> list[np.ndarray]:
        engine = ReferenceEngine.from_weights(checkpoint.config, checkpoint.weights, dtype=which)
        return [layer_values(prefix) for prefix in engine.encode(pixels)]

    truth, theirs = of_torch(torch.float64), of_torch(getattr(torch, dtype))
    engine = CudaEngine.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=dtype)
    ours = [values(prefix) for prefix in engine.encode(pixels)]
    assert np.mean((np.stack(ours) - truth) ** 2) < 1.1 * np.mean((np.stack(theirs) - truth) ** 2)


@pytest.mark.parametrize("count", [1, 3])
def test_prefixes_of_int8(device: str, tmp_path: Path, count: int) -> None:
    folder = write_model(tmp_path)
    pixels = random_pixels(count, 3, 32, 32)
    prefixes = make_engine(folder, device, prefix_dtype="int8").encode(pixels)
    assert_near(prefixes, expected(folder, pixels), 0.02)
    halves = make_engine(folder, device).encode(pixels)
    tokens = 2 * 2 * 2 * 17  # keys and values, layers, heads, tokens
    for prefix, half in zip(prefixes, halves, strict=True):
        assert prefix.keys.dtype == torch.int8
        assert int(prefix.keys.abs().max()) == int(prefix.values.abs().max()) == 127
        assert (half.nbytes, prefix.nbytes) == (tokens * 64 * 2, tokens * (64 + 4))


def test_a_prefix_dtype_that_cannot_be(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prefix_dtype: expected 'auto', 'int8', got 'int4'"):
        make_engine(write_model(tmp_path / "a"), device, prefix_dtype="int4")
    with pytest.raises(EngineError, match="prefix_dtype: int8 needs a head_dim of 64, got 16"):
        make_engine(write_model(tmp_path / "b", num_attention_heads=8), device, prefix_dtype="int8")


def test_pixels_that_cannot_be(device: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, num_image_with_embedding=2)
    told, untold = make_engine(folder, device, normalization=NORMALIZATION), make_engine(folder, device)
    as_bytes = np.zeros((1, 32, 32, 3), np.uint8)
    for engine, pixels, message in (
        (untold, as_bytes, r"expected float32; this engine was not told how to normalise bytes"),
        (told, as_bytes.astype(np.int64), r"expected float32 or uint8, got int64"),
        (told, as_bytes[0], r"expected bytes \(B, H, W, 3\) or \(B, T, H, W, 3\), got \(32, 32, 3\)"),
        (told, as_bytes.transpose(0, 3, 1, 2), r"expected bytes \(B, H, W, 3\) .* got \(1, 3, 32, 32\)"),
        (told, as_bytes.astype(np.float32), r"expected shape \(B, 3, H, W\), got \(1, 32, 32, 3\)"),
        (told, as_bytes[:, :24], r"expected images of 32x32, got 24x32"),
        (told, np.zeros((1, 3, 32, 32, 3), np.uint8), r"expected clips of at most 2 frames, got 3"),
    ):
        with pytest.raises(ValueError, match=f"pixel_values: {message}"):
            engine.encode(pixels)
    with pytest.raises(ValueError, match="pixel_values: expected images of at least one patch"):
        told.encode(as_bytes[:, :4], interpolate_positions=True)
