"""The tasks under their own names: ``POST /v1/caption``, ``answer``, ``classify``, ``score``, ``attend``.

The body is an image or clip, with arguments in the query string; or a multipart form of images and arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from gitfast.inputs.pictures import load_image
from gitfast.inputs.tokenizer import StreamDecoder, Tokenizer
from gitfast.model import Model
from gitfast.results import Result
from gitfast.serve import schemas
from gitfast.serve.body import Inputs
from gitfast.serve.errors import invalid
from gitfast.serve.inference import Inference, check_work, sampling_options, search_options
from gitfast.serve.settings import Settings

Work = Callable[[Inference], list[Any]]  # to the reply's results


@dataclass(frozen=True)
class Task:
    """One route: its description, its arguments, its reply, and the plan of work for a job."""

    name: str
    summary: str
    options: type[BaseModel]
    reply: type[BaseModel]
    plan: Callable[[Any, Sequence[bytes], Settings], Work]

    @property
    def path(self) -> str:
        return f"/v1/{self.name}"

    def work(self, inputs: Inputs, settings: Settings) -> Work:
        """Make a request's work. Raises ``ApiError``: an argument is unknown, wrong or beyond a limit."""
        return self.plan(inputs.options(self.options), inputs.files, settings)


def _generation(options: schemas.GenerateOptions, settings: Settings, *, images: int, prompts: int) -> dict[str, Any]:
    sampling = sampling_options(
        temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, seed=options.seed
    )
    texts, beams = options.num_return_sequences, options.num_beams
    if sampling and (beams or 1) > 1:
        raise invalid("num_beams: expected 1 with sampling (temperature, top_p, top_k)", "num_beams")
    chosen = search_options(settings, sampling, num_beams=beams, num_texts=texts, name="num_return_sequences")
    for name in ("length_penalty", "repetition_penalty"):
        if (value := getattr(options, name)) is not None:
            chosen[name] = value
    return check_work(
        settings,
        images=images,
        prompts=prompts,
        options=chosen,
        max_new_tokens=options.max_new_tokens,
        name="max_new_tokens",
    )


def _text_result(result: Result, image: int, question: str | None) -> dict[str, Any]:
    return {
        "image": image,
        "question": question,
        "text": result.text,
        "score": result.score,
        "finish_reason": result.finish_reason,
        "num_tokens": len(result.token_ids),
        "alternatives": [
            {"text": other.text, "score": other.score, "finish_reason": other.finish_reason}
            for other in result.alternatives
        ],
    }


def _caption(options: schemas.CaptionOptions, files: Sequence[bytes], settings: Settings) -> Work:
    chosen = _generation(options, settings, images=len(files), prompts=1)

    def work(inference: Inference) -> list[Any]:
        results = inference.captions(inference.encode(files), options.prompt, chosen)
        return [_text_result(result, i, None) for i, result in enumerate(results)]

    return work


def _answer(options: schemas.AnswerOptions, files: Sequence[bytes], settings: Settings) -> Work:
    questions = _at_most(options.question, settings.max_texts, "question")
    chosen = _generation(options, settings, images=len(files), prompts=len(questions))

    def work(inference: Inference) -> list[Any]:
        results = []
        for i, prefix in enumerate(inference.encode(files)):
            answers = inference.answers(prefix, questions, chosen)
            results += [_text_result(r, i, q) for q, r in zip(questions, answers, strict=True)]
        return results

    return work


def _classify(options: schemas.ClassifyOptions, files: Sequence[bytes], settings: Settings) -> Work:
    labels = _at_most(options.label, settings.max_labels, "label")

    def work(inference: Inference) -> list[Any]:
        prefixes = inference.encode(files)
        chosen = {"prompt": options.prompt, "method": options.method, "top_k": options.top_k}
        ranked = [inference.call(inference.model.classify, prefix, labels, **chosen) for prefix in prefixes]
        return [
            {
                "image": i,
                "labels": [
                    {"label": x.text, "index": x.index, "probability": x.probability, "score": x.score} for x in found
                ],
            }
            for i, found in enumerate(ranked)
        ]

    return work


def _score(options: schemas.ScoreOptions, files: Sequence[bytes], settings: Settings) -> Work:
    texts = _at_most(options.text, settings.max_texts, "text")

    def work(inference: Inference) -> list[Any]:
        results = []
        for i, prefix in enumerate(inference.encode(files)):
            chosen = {"prompt": options.prompt, "normalize": options.normalize}
            scores: Any = inference.call(inference.model.score, prefix, texts, **chosen)
            pairs = zip(texts, scores, strict=True)
            results.append({"image": i, "texts": [{"text": text, "score": score} for text, score in pairs]})
        return results

    return work


def _attend(options: schemas.AttendOptions, files: Sequence[bytes], settings: Settings) -> Work:
    def work(inference: Inference) -> list[Any]:
        model, results = inference.model, []
        for i, (file, prefix) in enumerate(zip(files, inference.encode(files), strict=True)):
            text = options.text
            if text is None:
                text = inference.captions([prefix], options.prompt, {})[0].text
            weights = inference.call(model.attend, prefix, text, prompt=options.prompt)
            frames = model.config.num_image_with_embedding or 1
            view, grid = (None, None) if model.config.is_video else _view(model, file)
            maps = _patch_maps(weights, frames, grid)
            words = [
                {"text": word, "attention": np.round(maps[first:last].mean(0, dtype=np.float64), 6).tolist()}
                for word, first, last in _words(model.processor.tokenizer, text)
            ]
            results.append({"image": i, "text": text, "view": view, "words": words})
        return results

    return work


def _at_most(values: list[str], limit: int, name: str) -> list[str]:
    if len(values) > limit:
        raise invalid(f"{name}: at most {limit} in one request, got {len(values)}", name)
    return values


def _words(tokenizer: Tokenizer, text: str) -> list[tuple[str, int, int]]:
    """Split a text into words with their first tokens and those behind their last; punctuation stays with a word."""
    decoder, words = StreamDecoder(tokenizer), list[tuple[str, int, int]]()
    for i, token in enumerate(tokenizer.encode(text)):
        piece = decoder.feed([token])
        if words and not piece.startswith(" "):
            word, first, _ = words.pop()
            words.append((word + piece, first, i + 1))
        else:
            words.append((piece.strip(), i, i + 1))
    if rest := decoder.finish():
        word, first, last = words.pop()
        words.append((word + rest, first, last))
    return words


def _patch_maps(weights: np.ndarray, frames: int, grid: tuple[int, int] | None) -> np.ndarray:
    """Map attention (tokens, image tokens) to (tokens, frames, rows, columns), each frame's class token dropped."""
    patches = weights.reshape(len(weights), frames, -1)[:, :, 1:]
    if grid is None:
        edge = round(patches.shape[2] ** 0.5)
        grid = (edge, edge)
    return patches.reshape(len(weights), frames, *grid)


def _view(model: Model, file: bytes) -> tuple[list[float], tuple[int, int]]:
    """Return the model's view of an image, (left, top, right, bottom) as parts of it, and (rows, columns) of patches.

    A crop larger than the image reaches beyond it.
    """
    image = load_image(file, limits=model.processor.limits)
    processor, patch = model.processor.image_processor, model.config.vision_config.patch_size
    height, width, _ = processor.preprocess(image, normalize=False).shape
    grid = (height // patch, width // patch)
    if processor.crop_size is None:
        return [0.0, 0.0, 1.0, 1.0], grid
    size = processor.size
    if isinstance(size, tuple):
        resized_height, resized_width = map(float, size)
    else:
        scale = 1.0 if size is None else size / min(image.size)
        resized_width, resized_height = image.width * scale, image.height * scale
    x, y = width / resized_width / 2, height / resized_height / 2
    return [round(v, 6) for v in (0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y)], grid


TASKS = (
    Task("caption", "Caption images or clips.", schemas.CaptionOptions, schemas.TextReply, _caption),
    Task("answer", "Answer questions about images or clips.", schemas.AnswerOptions, schemas.TextReply, _answer),
    Task("classify", "Rank labels for images or clips.", schemas.ClassifyOptions, schemas.ClassifyReply, _classify),
    Task("score", "Give the log-probability of texts.", schemas.ScoreOptions, schemas.ScoreReply, _score),
    Task("attend", "Show where the model looked for each word.", schemas.AttendOptions, schemas.AttendReply, _attend),
)
