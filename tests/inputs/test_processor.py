"""The settings of a checkpoint folder, and clips against transformers' video processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gitfast.checkpoints.config import GitConfig
from gitfast.errors import ArgumentError, CheckpointError, VideoError
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.processor import Processor

VIDEO_CONFIG = GitConfig.from_dict({"num_image_with_embedding": 6})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "is", "what"]))
    return tmp_path


def clip(frames: int, seed: int = 0, height: int = 30, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_clips_of_bytes(folder: Path) -> None:
    with pytest.warns(UserWarning, match="no preprocessor_config.json"):
        processor = Processor.from_folder(folder, VIDEO_CONFIG)
    frames, normalised = processor.clip(clip(6), 6, normalize=False), processor.clip(clip(6), 6)
    assert (frames.dtype, frames.shape) == (np.dtype(np.uint8), (6, 224, 224, 3))
    a, b = (np.array(values, np.float32) for values in processor.image_processor.normalization.affine())
    np.testing.assert_allclose(frames * a + b, normalised.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_settings_of_a_folder(folder: Path) -> None:
    config = GitConfig()
    with pytest.warns(UserWarning, match="no preprocessor_config.json"):
        processor = Processor.from_folder(folder, config)
    assert processor.image_processor == ImageProcessor.for_config(config)
    assert processor.num_frames is None
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 30, "crop_size": 20}}))
    processor = Processor.from_folder(folder, config)
    assert processor.image_processor.crop_size == (20, 20)
    original = Processor.from_folder(folder, config, preprocess="original")
    assert original.image_processor == ImageProcessor.original(config)
    with pytest.raises(ValueError, match="preprocess: expected 'hf', 'original' or 'fast', got 'slow'"):
        Processor.from_folder(folder, config, preprocess="slow")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"limits: expected gitfast\.Limits, got a value of type dict"):
        Processor.from_folder(folder, config, limits={"max_pixels": 9})  # type: ignore[arg-type]
    small = GitConfig(vocab_size=7, bos_token_id=2, eos_token_id=3)
    with pytest.raises(CheckpointError, match="the model only 7"):
        Processor.from_folder(folder, small)


@pytest.mark.parametrize(
    ("nested", "crop"),
    [({"image_processor": {"crop_size": 20}}, 20), ({"image_processor": None}, 40), ({"processor_class": "Git"}, 40)],
)
def test_settings_of_a_folder_with_both_files(nested: dict, crop: int, folder: Path) -> None:
    from transformers import CLIPImageProcessorPil

    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 40}))
    (folder / "processor_config.json").write_text(json.dumps(nested))
    theirs = CLIPImageProcessorPil.from_pretrained(folder).crop_size
    assert Processor.from_folder(folder, GitConfig()).image_processor.crop_size == (crop, crop)
    assert (theirs["height"], theirs["width"]) == (crop, crop)


def test_processor_file_without_an_image_part(folder: Path) -> None:
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "GitProcessor"}))
    with pytest.warns(UserWarning, match="no preprocessor_config.json"):
        processor = Processor.from_folder(folder, VIDEO_CONFIG)
    assert processor.image_processor == ImageProcessor.for_config(VIDEO_CONFIG)


@pytest.mark.filterwarnings("ignore:.*preprocessor_config.json")
def test_clips_match_transformers(folder: Path) -> None:
    from transformers import VideoMAEImageProcessorPil

    processor = Processor.from_folder(folder, VIDEO_CONFIG)
    videos = [clip(6, seed=1), clip(6, seed=2, height=70)]
    ours = processor.clips(videos)
    theirs = VideoMAEImageProcessorPil()([list(video) for video in videos], return_tensors="np").pixel_values
    assert ours.shape == (2, 6, 3, 224, 224)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*preprocessor_config.json")
def test_clips_are_sampled_and_checked(folder: Path) -> None:
    processor = Processor.from_folder(folder, VIDEO_CONFIG)
    long, short = clip(60), clip(2)
    np.testing.assert_array_equal(processor.clips([long]), processor.clips([long[5::10]]))
    np.testing.assert_array_equal(processor.clips([short]), processor.clips([short[[0, 0, 0, 1, 1, 1]]]))
    assert processor.clips([long, short], num_frames=4).shape == (2, 4, 3, 224, 224)
    assert processor.clips([long], sampling=[3, 1]).shape == (1, 2, 3, 224, 224)
    with pytest.raises(VideoError, match=r"videos\[1\]: frames\[0\]: no.jpg: No such file"):
        processor.clips([short, ["no.jpg"]])
    with pytest.raises(VideoError, match="expected at least one frame"):
        processor.clips([[]])
    with pytest.raises(VideoError, match="videos: expected at least one"):
        processor.clips([])


def test_original_clips_of_different_sizes_are_refused(folder: Path) -> None:
    config = GitConfig.from_dict({"num_image_with_embedding": 6, "vision_config": {"image_size": 480}})
    processor = Processor.from_folder(folder, config, preprocess="original")
    assert processor.clips([clip(6)]).shape == (1, 6, 3, 384, 640)
    with pytest.raises(VideoError, match="expected clips of one shape"):
        processor.clips([clip(6), clip(6, height=50)])
    mixed = [*clip(3), *clip(3, height=50)]
    with pytest.raises(VideoError, match="frames end in different sizes"):
        processor.clips([mixed])
