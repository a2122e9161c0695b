"""Images of several sizes in one call: each is encoded with those of its size, and results keep their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.cpu import CpuEngine
from gitfast.engines.cuda.engine import CudaEngine
from gitfast.inputs.processor import Processor
from gitfast.model import Model

from support.cuda.encoder_cases import read_model, write_model
from support.tiny_checkpoint import CONFIG, random_image

# Five rows or columns of patches of 48 pixels; the others are five or six: 26 or 31 tokens. Two sizes of the same
# number of patches, and two whose prefixes have the same length.
SIZES = ((320, 240), (240, 240), (240, 320), (300, 240), (250, 240), (320, 240), (480, 360))
TOKENS = (31, 26, 31, 31, 26, 31, 31)


Weights = tuple[GitConfig, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vision = {**CONFIG["vision_config"], "image_size": 240, "patch_size": 48}  # type: ignore[dict-item]
    return write_model(tmp_path_factory.mktemp("rectangles"), vision_config=vision, seed=1)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    """A model that says something else of nearly every image."""
    return read_model(folder, factor=0.5)


@pytest.fixture(scope="module")
def processor(folder: Path, weights: Weights) -> Processor:
    return Processor.from_folder(folder, weights[0], preprocess="original")


@pytest.fixture(scope="module")
def images() -> list[PIL.Image.Image]:
    return [random_image(seed, size) for seed, size in enumerate(SIZES)]


@pytest.mark.parametrize("as_bytes", [False, True], ids=["floats", "bytes"])
def test_a_list_of_sizes(
    device: str, weights: Weights, processor: Processor, images: list[PIL.Image.Image], as_bytes: bool
) -> None:
    normalization = processor.image_processor.normalization if as_bytes else None
    engine = CudaEngine.from_weights(*weights, device=device, dtype="float16", normalization=normalization)
    model = Model(engine, processor, weights[0])
    together = model.caption(images, max_new_tokens=4)
    assert engine.stats.encoded_images == len(images)
    assert {(plan.height, plan.width, plan.images) for plan in engine.plans()} == {
        (240, 240, 1), (240, 288, 1), (240, 288, 4), (288, 240, 1),
    }  # fmt: skip
    on_cpu = Model(CpuEngine.from_weights(*weights), processor, weights[0]).caption(images, max_new_tokens=4)
    assert len({result.text for result in on_cpu}) >= 5
    for image, result, expected in zip(images, together, on_cpu, strict=True):
        for other, tolerance in ((expected, 0.02), (model.caption(image, max_new_tokens=4), 0.005)):
            assert result.token_ids == other.token_ids
            np.testing.assert_allclose(result.token_logprobs, other.token_logprobs, atol=tolerance)


def test_batches_of_any_number(
    device: str, weights: Weights, processor: Processor, images: list[PIL.Image.Image]
) -> None:
    """A batch may begin anywhere, and prefixes may stand between images."""
    model = Model(CudaEngine.from_weights(*weights, device=device, dtype="float16"), processor, weights[0])
    prefixes = model.encode(images)
    assert tuple(prefix.num_tokens for prefix in prefixes) == TOKENS
    whole = [result.token_ids for result in model.caption(prefixes, max_new_tokens=3)]
    for batch_size in (2, 3):
        mixed = [images[0], prefixes[1], *images[2:]]
        results = model.caption_each(mixed, batch_size=batch_size, max_new_tokens=3)
        assert [result.token_ids for result in results] == whole
