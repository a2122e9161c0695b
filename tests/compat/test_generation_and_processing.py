"""``generate`` and ``GitProcessor`` against transformers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import gitfast
from gitfast.compat import native
from gitfast.errors import CheckpointError, EngineError

from support.tiny_checkpoint import random_image, write_checkpoint


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, 32, 32)).astype(np.float32))


OPTIONS = [
    {},
    {"max_new_tokens": 7},
    {"max_length": 9},
    {"num_beams": 3, "max_new_tokens": 8},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "max_new_tokens": 8},
    {"min_new_tokens": 4, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "max_new_tokens": 10},
]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_equal_transformers(kit: Any, folder: Path, engine: str, options: dict[str, Any]) -> None:
    theirs = transformers.GitForCausalLM.from_pretrained(folder).eval()
    model = kit.GitForCausalLM.from_pretrained(folder)
    ids, mask = torch.tensor([[0, 2, 5], [2, 8, 11]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels(2)}
    expected = theirs.generate(**inputs, **options, do_sample=False, pad_token_id=0)
    ours = model.generate(**inputs, **options, engine=engine)
    if "num_beams" in options:  # transformers fills finished beams with the end-of-sequence token
        expected = _end_padded(expected, 3, 3)
    assert torch.equal(ours, expected)


def _end_padded(sequences: torch.Tensor, start: int, eos: int) -> torch.Tensor:
    """Set everything after the first end-of-sequence token from ``start`` on to 0."""
    rows = sequences.clone()
    for row in rows:
        ends = (row[start:] == eos).nonzero()
        if len(ends):
            row[start + int(ends[0]) + 1 :] = 0
    return rows


def test_captions_without_prompts_and_scores(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    output = model.generate(pixel_values=pixels(3), return_dict_in_generate=True)
    assert output.engine == "cpu"
    assert (output.sequences[:, 0] == 2).all()
    assert len(output.token_logprobs) == 3
    for score, logprobs in zip(output.sequences_scores, output.token_logprobs, strict=True):
        assert float(score) == pytest.approx(sum(logprobs), abs=1e-4)


def test_which_engine_runs(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)

    def engine_of(model: Any) -> str:
        return model.generate(pixel_values=pixels(1), return_dict_in_generate=True).engine

    assert engine_of(model) == "cpu"
    assert engine_of(model.train()) == "reference"
    assert model.training
    assert engine_of(model.eval().double()) == "reference"
    with pytest.raises(EngineError, match=r"needs a float32, float16 or bfloat16 model on the CPU, got torch\.float64"):
        model.generate(pixel_values=pixels(1), engine="cpu")


def test_the_native_engine_follows_the_weights(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    before = model.generate(pixel_values=pixels(1))
    built = model._native
    model.generate(pixel_values=pixels(1))
    assert model._native is built
    model.output.bias.data[9] += 100  # no version counter sees this
    assert (model.generate(pixel_values=pixels(1))[:, 1:] == 9).all()
    model.output.bias.data[9] -= 100
    with torch.no_grad():
        model.output.bias[7] += 100
    after = model.generate(pixel_values=pixels(1))
    assert not torch.equal(before, after)
    assert (after[:, 1:] == 7).all()


def test_the_native_engine_follows_rows_and_heads(kit: Any, folder: Path) -> None:
    config = kit.GitConfig.from_pretrained(folder)
    config.vocab_size = 300  # more rows than values that are read of other tensors
    config.num_hidden_layers = 1
    model = kit.GitForCausalLM(config).eval()
    model.generate(pixel_values=pixels(1))
    attention = next(module for name, module in model.named_modules() if name.endswith("layer.0.attention"))
    projections = {
        name: x for name, x in attention.named_parameters() if name in ("self.query.weight", "output.dense.weight")
    }
    half = config.hidden_size // 2
    for changed in (
        model.output.weight.data[271],
        model.get_input_embeddings().weight.data[133],
        projections["self.query.weight"].data[half:],
        projections["output.dense.weight"].data[:, half:],
    ):
        built = model._native
        changed += 1
        model.generate(pixel_values=pixels(1))
        assert model._native is not built


def test_the_native_engine_of_one_call_is_no_other_calls(
    kit: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    tokens = model.generate(pixel_values=pixels(1))

    class State(tuple):
        def __ne__(self, other: object) -> bool:
            model._native = None  # as a call in another thread does that found other weights
            return False

    built = model._native
    model._native = (built[0], State(built[1]))
    monkeypatch.setattr(native, "_state", lambda model: State(built[1]))
    assert torch.equal(model.generate(pixel_values=pixels(1)), tokens)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_compares_many_words(kit: Any, folder: Path) -> None:
    """torch hangs there where it takes threads, as it does to copy this many values."""
    config = kit.GitConfig.from_pretrained(folder)
    config.vocab_size = 90_000
    model = kit.GitForCausalLM(config).eval()
    want = model.generate(pixel_values=pixels(1), max_new_tokens=2, engine="cpu")
    torch.ones(500, 500) @ torch.ones(500, 500)  # the parent has its threads
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest has a handler, which would not run
        signal.alarm(60)
        same = torch.equal(model.generate(pixel_values=pixels(1), max_new_tokens=2, engine="cpu"), want)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_weights_made_in_inference_mode(kit: Any, folder: Path) -> None:
    with torch.inference_mode():
        model = kit.GitForCausalLM(kit.GitConfig.from_pretrained(folder)).eval()
    assert model.output.weight.is_inference()
    tokens = model.generate(pixel_values=pixels(2), max_new_tokens=5, engine="cpu")
    assert torch.equal(model.generate(pixel_values=pixels(2), max_new_tokens=5, engine="reference"), tokens)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_every_row_has_as_many_sequences(kit: Any, folder: Path, engine: str) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    prompts = torch.tensor([[2, 5, 9], [2, 9, 9]])
    options = {"num_beams": 3, "num_return_sequences": 3, "allowed_token_ids": [[5, 3], [8, 3]], "engine": engine}
    found = model.generate(prompts, pixel_values=pixels(2), return_dict_in_generate=True, max_new_tokens=4, **options)
    assert found.sequences[:, :3].tolist() == prompts.repeat_interleave(3, 0).tolist()
    scores = found.sequences_scores.view(2, 3)
    assert len(found.token_logprobs) == 6
    assert (scores[:, 2] == -1e9).all()  # there are two: the last is one of them again
    assert (scores[:, :2] > -100).all()
    assert found.sequences[2].tolist() == found.sequences[1].tolist()


def test_one_image_many_questions(kit: Any, folder: Path) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[2, 5, 6], [2, 8, 11], [2, 9, 9]])
    together = model.generate(ids, pixel_values=pixels(1), max_new_tokens=5)
    for i in range(3):
        alone = model.generate(ids[i : i + 1], pixel_values=pixels(1), max_new_tokens=5)[0]
        assert torch.equal(together[i, : len(alone)], alone)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_length": 3}, ValueError, "max_length: expected more than the prompt's 3 tokens"),
        ({"beams": 3}, TypeError, "unknown options beams"),
        ({"engine": "tpu"}, ValueError, "engine: expected"),
        ({"attention_mask": torch.zeros(1, 3)}, ValueError, "a row has no token that is not padding"),
        ({"pixel_values": pixels(2)}, ValueError, "1 rows do not divide over 2 images"),
    ],
)
def test_bad_arguments_are_named(kit: Any, folder: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    model = kit.GitForCausalLM.from_pretrained(folder)
    with pytest.raises(error, match=message):
        model.generate(torch.tensor([[2, 5, 6]]), **{"pixel_values": pixels(1), **arguments})


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_processor_equals_transformers(kit: Any, folder: Path, side: str, special: bool) -> None:
    from transformers import BertTokenizer, CLIPImageProcessorPil

    tokenizer = BertTokenizer.from_pretrained(folder)
    theirs = CLIPImageProcessorPil.from_pretrained(folder)
    texts, images = ["what color is the square ?", "how many ?"], [random_image(0), random_image(1)]
    inputs = kit.GitProcessor.from_pretrained(folder)(
        images, texts, padding=True, padding_side=side, add_special_tokens=special, return_tensors="pt"
    )
    expected = tokenizer(texts, padding=True, padding_side=side, add_special_tokens=special, return_tensors="pt")
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert torch.equal(inputs.attention_mask, expected.attention_mask)
    assert torch.equal(inputs.pixel_values, theirs(images, return_tensors="pt").pixel_values)
    assert kit.GitForCausalLM.from_pretrained(folder)(**inputs).logits.shape[0] == 2
    assert inputs.to(torch.float16).pixel_values.dtype == torch.float16
    assert inputs.to(torch.float16).input_ids.dtype == torch.int64


def test_processor_saves_and_decodes(kit: Any, folder: Path, tmp_path: Path) -> None:
    processor = kit.GitProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "saved")
    kit.GitForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    again = kit.GitProcessor.from_pretrained(tmp_path / "saved")
    image = random_image(2)
    assert torch.equal(
        again(image, return_tensors="pt").pixel_values, processor(image, return_tensors="pt").pixel_values
    )
    ids = processor(text=["a red square"])["input_ids"]
    assert processor(text="a red square")["input_ids"] == ids[0]
    assert again.batch_decode(ids) == ["[CLS] a red square [SEP]"]
    assert again.batch_decode(ids, skip_special_tokens=True) == ["a red square"]
    caption = str(gitfast.load(folder).caption(image, max_new_tokens=20))
    tokens = kit.GitForCausalLM.from_pretrained(folder).generate(
        pixel_values=again(image, return_tensors="pt").pixel_values
    )
    assert again.batch_decode(tokens, skip_special_tokens=True) == [caption]


def test_processor_clips(kit: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_image_with_embedding=3)
    clip = [random_image(i) for i in range(3)]
    processor = kit.GitProcessor.from_pretrained(folder)
    inputs = processor(videos=[clip, clip], return_tensors="np")
    assert inputs.pixel_values.shape == (2, 3, 3, 32, 32)
    frames = processor(images=clip, return_tensors="np")  # as in transformers' recipe for videos
    assert np.array_equal(frames.pixel_values, inputs.pixel_values[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected at least one of them"),
        ({"text": ["a", "a red"], "return_tensors": "pt"}, "padding=True"),
        ({"text": "a", "return_tensors": "tf"}, "tf|TensorFlow"),
        ({"text": ["a", "a red"], "padding": True, "padding_side": "top"}, "top|padding"),
        ({"images": random_image(0), "videos": [[random_image(0)]]}, "expected at most one"),
    ],
)
def test_processor_names_bad_arguments(kit: Any, folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kit.GitProcessor.from_pretrained(folder)(**arguments)


def test_a_picture_is_the_same_however_it_is_given(kit: Any, folder: Path, tmp_path: Path) -> None:
    processor, image = kit.GitProcessor.from_pretrained(folder), random_image(0)
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    expected = processor(image, return_tensors="np").pixel_values
    data = (tmp_path / "image.png").read_bytes()
    chw = array.transpose(2, 0, 1)
    for given in (str(tmp_path / "image.png"), data, {"bytes": data, "path": None}, array, chw, torch.tensor(chw)):
        assert np.array_equal(processor(given, return_tensors="np").pixel_values, expected)
    for batch in ([image] * 2, np.stack([chw] * 2), torch.tensor(np.stack([chw] * 2))):
        pixels = processor(batch, return_tensors="np").pixel_values
        assert np.array_equal(pixels, np.concatenate([expected] * 2))
    grey = Image.fromarray(np.linspace(0, 65535, 40 * 36).reshape(36, 40).astype(np.uint16))
    grey.save(tmp_path / "grey.png")
    pixels = [processor(given, return_tensors="np").pixel_values for given in (grey, tmp_path / "grey.png")]
    assert np.array_equal(*pixels)
    assert np.unique(pixels[0]).size > 20  # not all white


def test_every_argument_for_texts(kit: Any, folder: Path) -> None:
    from transformers import BertTokenizer

    processor, theirs = kit.GitProcessor.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    texts = ["a red square", "how many [SEP] ?", "the green circle on a blue square , yes"]
    calls = [
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 6, "truncation": True},
        {"padding": True, "truncation": "longest_first", "max_length": 5},
        {"padding": "longest", "pad_to_multiple_of": 8, "padding_side": "left"},
        {"truncation": True, "max_length": 4, "add_special_tokens": False},
        {"padding": "do_not_pad"},
    ]
    for options in calls:
        for text in (texts, texts[1]):
            ours, expected = processor(text=text, **options), theirs(text, **options)
            assert ours["input_ids"] == expected["input_ids"], options
            assert ours["attention_mask"] == expected["attention_mask"], options
    question = "what color is the square ?"
    ids = [processor.tokenizer.cls_token_id, *processor(text=question, add_special_tokens=False).input_ids]
    assert ids == [theirs.cls_token_id, *theirs(question, add_special_tokens=False).input_ids]
    changed = processor(random_image(0), do_resize=False, return_tensors="np").pixel_values
    assert changed.shape == (1, 3, 32, 32)  # cut, not shrunk
    assert not np.array_equal(changed, processor(random_image(0), return_tensors="np").pixel_values)
    if kit.name == "plain":
        with pytest.raises(TypeError, match="return_offsets_mapping: not known, or needs transformers"):
            processor(text="a", return_offsets_mapping=True)


def test_a_tokenizer_json_that_gitfast_refuses_reaches_no_library(kit: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
                "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "[CLS]": 2, "[SEP]": 3}},
            }
        )
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: normalizer: expected BertNormalizer"):
        kit.GitProcessor.from_pretrained(tmp_path / "model")


def test_recipes_of_text_and_image(kit: Any, folder: Path) -> None:
    from transformers import BertTokenizer

    processor, theirs = kit.GitProcessor.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    rows = [[2, 5, 6, 3], [2, 7, 3, 0]]
    for given in (rows, np.array(rows), torch.tensor(rows)):
        assert processor.batch_decode(given, skip_special_tokens=True) == theirs.batch_decode(
            rows, skip_special_tokens=True
        )
        assert processor.decode(given[0], skip_special_tokens=True, clean_up_tokenization_spaces=True) == "a the"
        assert processor.batch_decode(given[0], skip_special_tokens=True) == ["a the"]
    if kit.name == "plain":  # transformers makes one empty text of no rows
        assert processor.batch_decode([]) == []
    tokenizer, text = processor.tokenizer, "a red squareish"
    assert tokenizer.tokenize(text) == theirs.tokenize(text)
    ids = theirs(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert tokenizer.convert_tokens_to_ids(theirs.tokenize(text)) == ids[1:-1]
    images = processor.image_processor
    assert images.size["shortest_edge"] == 32
    assert images.preprocess(random_image(0), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)
    assert {"pixel_values", "input_ids", "attention_mask"} <= set(processor.model_input_names)
    model = kit.GitForCausalLM.from_pretrained(folder)
    inputs = processor(images=random_image(0), text="a red", add_special_tokens=False, return_tensors="pt")
    expected = model.generate(inputs.input_ids, pixel_values=inputs.pixel_values, max_new_tokens=4)
    kinds = torch.zeros_like(inputs.input_ids)  # that a BERT tokenizer adds
    inputs["token_type_ids"] = kinds
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), expected)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, engine="reference"), expected)


def test_numbers_from_0_to_1_are_not_divided_again_in_silence(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    from gitfast.compat.hf_processing import GitProcessor

    processor = GitProcessor.from_pretrained(folder)
    whole = np.asarray(random_image(0)).astype(np.float32)
    expected = processor(whole, return_tensors="np").pixel_values
    kept = processor(whole / 255, do_rescale=False, return_tensors="np").pixel_values
    np.testing.assert_allclose(kept, expected, atol=1e-2)
    assert not recwarn
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor([whole / 255], return_tensors="np")
