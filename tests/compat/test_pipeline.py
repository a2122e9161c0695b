"""``pipeline("image-to-text")`` as transformers 4 had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gitfast import compat
from gitfast.compat.pipelines import ImageToTextPipeline

from support.tiny_checkpoint import random_image


def test_one_many_and_streams(kit: Any, folder: Path, tmp_path: Path) -> None:
    model, processor = kit.GitForCausalLM.from_pretrained(folder), kit.GitProcessor.from_pretrained(folder)
    captioner = ImageToTextPipeline(model, processor, max_new_tokens=8)
    images = [random_image(i) for i in range(3)]
    images[0].save(tmp_path / "0.png")
    alone = [captioner(image) for image in images]
    for result in alone:
        assert [set(entry) for entry in result] == [{"generated_text"}]
    assert captioner(str(tmp_path / "0.png")) == captioner(tmp_path / "0.png") == alone[0]
    assert captioner(images) == captioner(images, batch_size=2) == alone
    stream = captioner(iter(images))
    assert next(stream) == alone[0]
    assert list(stream) == alone[1:]
    pixels = processor(images, return_tensors="pt").pixel_values
    texts = processor.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=8), skip_special_tokens=True)
    assert [[{"generated_text": text}] for text in texts] == alone


def test_lists_in_a_list_are_refused(kit: Any, folder: Path) -> None:
    captioner = ImageToTextPipeline(
        kit.GitForCausalLM.from_pretrained(folder), kit.GitProcessor.from_pretrained(folder), batch_size=2
    )
    first, second, third = (np.asarray(random_image(i)) for i in range(3))
    for images in ([[first, second], [third]], [np.stack([first, second]), third[None]]):
        with pytest.raises(ValueError, match="image"):  # three texts of two pictures
            captioner(images)


def test_prompts_and_options(kit: Any, folder: Path) -> None:
    captioner = ImageToTextPipeline(
        kit.GitForCausalLM.from_pretrained(folder), kit.GitProcessor.from_pretrained(folder)
    )
    (answer,) = captioner(random_image(0), prompt="what color", max_new_tokens=4)
    assert answer["generated_text"].startswith("what color")
    several = captioner(
        [random_image(0), random_image(1)], generate_kwargs={"num_beams": 3, "num_return_sequences": 2}, batch_size=2
    )
    assert [len(texts) for texts in several] == [2, 2]


def test_by_name() -> None:
    captioner = compat.pipeline("image-to-text", model="git-tiny", max_new_tokens=5)
    assert captioner(random_image(0))[0]["generated_text"]
    clips = compat.pipeline(model="git-tiny-video")
    assert clips([[random_image(i) for i in range(3)]])[0][0]["generated_text"]


def test_parts_of_a_processor_and_the_old_name_of_the_cpu(folder: Path) -> None:
    from gitfast.compat.hf import GitForCausalLM
    from gitfast.compat.hf_processing import GitProcessor

    processor = GitProcessor.from_pretrained(folder)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    expected = compat.pipeline(model=str(folder), max_new_tokens=5)(random_image(0))
    for model in (str(folder), GitForCausalLM.from_pretrained(folder)):
        assert compat.pipeline(model=model, device=-1, max_new_tokens=5, **parts)(random_image(0)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "text-generation"}, "task: expected 'image-to-text'"),
        ({"model": object()}, "processor: expected a GitProcessor"),
        ({"tokenizer": object()}, "tokenizer, image_processor: expected both"),
        ({"batch_size": 0}, "batch_size: expected an integer"),
        ({"max_new_tokens": 3, "generate_kwargs": {"max_new_tokens": 4}}, "max_new_tokens: given twice"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compat.pipeline(**arguments)
