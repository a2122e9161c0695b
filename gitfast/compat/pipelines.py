"""``pipeline("image-to-text")``: the call of that name which transformers 5 no longer has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gitfast import arguments

TASK = "image-to-text"
_DEFAULT_MODEL = "git-tiny"

Texts = list[dict[str, str]]


class ImageToTextPipeline:
    """Pictures to texts, with the arguments and results of transformers 4's pipeline of this name.

    Attributes:
        model: A ``GitForCausalLM``.
        processor: A ``GitProcessor``.
    """

    task = TASK

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a model and its processor; see ``pipeline``."""
        self.model, self.processor = model, processor
        self._batch_size = _positive("batch_size", batch_size)
        self._options = _options(max_new_tokens, generate_kwargs)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    def __call__(
        self,
        images: Any,
        *,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Describe pictures.

        Args:
            images: A picture as ``GitProcessor`` takes it (a path, bytes, a PIL image, an array), a list of them, or
                any other iterable, which is read as its results are taken.
            prompt: A question, or the beginning of the text; it stands before every text that is returned.
            max_new_tokens: As in ``generate``; 20 where neither this nor the model's generation_config.json says it.
            generate_kwargs: More arguments of ``generate``.
            batch_size: Pictures that run together.

        Returns:
            ``[{"generated_text": ...}]`` of one picture, with an entry for each of ``num_return_sequences``; a list or
            an iterator of these for several.
        """
        size = self._batch_size if batch_size is None else _positive("batch_size", batch_size)
        options = {**self._options, **_options(max_new_tokens, generate_kwargs)}
        if isinstance(images, (list, tuple)):
            return list(self._texts(images, prompt, options, size))
        if _is_stream(images):
            return self._texts(images, prompt, options, size)
        return next(self._texts([images], prompt, options, size))

    def _texts(self, images: Iterable[Any], prompt: str | None, options: dict[str, Any], size: int) -> Iterator[Texts]:
        pending = iter(images)
        while batch := list(itertools.islice(pending, size)):
            yield from self._batch(batch, prompt, options)

    def _batch(self, images: Sequence[Any], prompt: str | None, options: dict[str, Any]) -> list[Texts]:
        clips = self.model.config.num_image_with_embedding is not None
        pixels = self.processor(**{"videos" if clips else "images": list(images)}, return_tensors="pt").pixel_values
        if len(pixels) != len(images):
            raise ValueError(f"images: expected {len(images)} pictures, got {len(pixels)}; pass them in one flat list")
        inputs = {"pixel_values": pixels.to(self.model.device)}
        if prompt is not None:
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            inputs["input_ids"] = torch.tensor([[self.tokenizer.cls_token_id, *ids]] * len(images))
        sequences = self.model.generate(**inputs, **options)
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
        each = len(texts) // len(images)
        return [[{"generated_text": text} for text in texts[i : i + each]] for i in range(0, len(texts), each)]


def pipeline(
    task: str = TASK,
    model: Any = _DEFAULT_MODEL,
    *,
    processor: Any = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    device: Any = None,
    dtype: Any = None,
    batch_size: int = 1,
    max_new_tokens: int | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> ImageToTextPipeline:
    """Make a captioner that is called as transformers' ``pipeline("image-to-text")`` was.

    Args:
        task: "image-to-text".
        model: Any name that ``gitfast.load`` takes, or a ``GitForCausalLM``.
        processor: A ``GitProcessor`` or a name; by default that of the model.
        tokenizer, image_processor: The parts of a ``GitProcessor``, in place of ``processor``.
        device: The model's device; -1 is the CPU.
        dtype: The model's dtype.
        batch_size, max_new_tokens, generate_kwargs: Defaults of the calls.
        **options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, as in ``gitfast.load``.

    Raises:
        ValueError: another task, or a model without its processor.
        CheckpointError: as ``gitfast.load``.
    """
    if not isinstance(task, str) or task != TASK:
        raise ValueError(f"task: expected {TASK!r}, got {arguments.shown(task)}; transformers has pipelines for others")
    parts = (tokenizer, image_processor)
    if (tokenizer is None) != (image_processor is None) or (processor is not None and parts != (None, None)):
        raise ValueError("tokenizer, image_processor: expected both, or a processor in their place")
    if processor is None and tokenizer is None and not isinstance(model, (str, os.PathLike)):
        raise ValueError("processor: expected a GitProcessor or a name, because the model is not given by name")
    from gitfast.compat import GitForCausalLM, GitProcessor  # the import decides between the two families

    source = model if processor is None else processor
    if isinstance(source, (str, os.PathLike)) and tokenizer is None:
        processor = GitProcessor.from_pretrained(source, **options)
    if isinstance(model, (str, os.PathLike)):
        model = GitForCausalLM.from_pretrained(model, **({} if dtype is None else {"dtype": dtype}), **options)
    elif dtype is not None:
        model = model.to(dtype)
    if tokenizer is not None:
        processor = _joined(tokenizer, image_processor, model.config.num_image_with_embedding)
    if device is not None:
        model = model.to("cpu" if device == -1 else device)
    return ImageToTextPipeline(
        model.eval(), processor, batch_size=batch_size, max_new_tokens=max_new_tokens, generate_kwargs=generate_kwargs
    )


def _joined(tokenizer: Any, image_processor: Any, num_frames: int | None) -> Any:
    from gitfast.compat import GitProcessor, has_transformers

    if not has_transformers():
        raise ValueError("tokenizer, image_processor: need transformers installed; pass processor in their place")
    joined = GitProcessor(image_processor, tokenizer)
    joined.num_frames = num_frames
    return joined


def _options(max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(generate_kwargs or {})
    if max_new_tokens is not None:
        if "max_new_tokens" in options:
            raise ValueError("max_new_tokens: given twice, as an argument and in generate_kwargs")
        options["max_new_tokens"] = max_new_tokens
    return options


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return value


def _is_stream(images: Any) -> bool:
    """Return whether these are many pictures, not one: a generator, a dataset, an iterator of files."""
    one = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)
    if isinstance(images, one) or hasattr(images, "read") or hasattr(images, "shape") or hasattr(images, "getbands"):
        return False
    return isinstance(images, Iterable)
