"""A loaded model: images and clips in, captions, answers, labels and scores out."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import Engine
from gitfast.inputs.image import ImageSource
from gitfast.inputs.processor import Processor
from gitfast.inputs.sources import ClipSampling, as_iterable, as_list
from gitfast.inputs.tokenizer import StreamDecoder
from gitfast.inputs.video import Sampling, VideoSource
from gitfast.pipeline import batching as pipeline
from gitfast.pipeline.batching import Batching, OnError, Prompts
from gitfast.pipeline.classification import Method, encode_labels, rank_labels
from gitfast.pipeline.options import make_options
from gitfast.pipeline.streaming import stream_tokens
from gitfast.results import Label, Result
from gitfast.types import GenerationOptions, ImagePrefix

Image: TypeAlias = "ImageSource | ImagePrefix"
Video: TypeAlias = "VideoSource | ImagePrefix"
# Many of one kind; a list, so that no string, bytes or array is taken for one.
Many: TypeAlias = list[Any] | tuple[Any, ...]


class Model:
    """A GIT checkpoint on an engine; ``gitfast.load`` makes one. Calls are thread-safe.

    One input gives one result, a list gives a list in its order. Images are encoded ``batch_size`` at a time, so
    memory does not grow with their number; each is encoded once, whatever the number of questions, beams or samples.
    Wherever an image is expected, a prefix from ``encode`` does as well.

    Attributes:
        engine: What computes; ``engine.name`` says which.
        processor: Turns images and text into what the engine takes.
        config: The shapes of the model.
        name: How messages name the model.
    """

    def __init__(self, engine: Engine, processor: Processor, config: GitConfig, name: str = "model") -> None:
        self.engine = engine
        self.processor = processor
        self.config = config
        self.name = name

    def __repr__(self) -> str:
        return f"<gitfast.Model {self.name} on the {self.engine.name} engine>"

    @overload
    def caption(
        self,
        images: Many,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> list[Result]: ...
    @overload
    def caption(
        self,
        images: Image,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result: ...
    def caption(
        self,
        images: Image | Many,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result | list[Result]:
        """What an image shows.

        Args:
            images: One image (a path, bytes, a binary file object, a PIL image, a uint8 array (H, W, 3), or a
                prefix) or a list of them.
            prompt: How the caption begins.
            batch_size: Images encoded together. None: 8, or on an engine that refills its rows as many as it decodes
                at once, 64 at most.
            on_error: "raise" the first bad image's error, or "return" it in its result's ``error``.
            **options: Fields of ``GenerationOptions``; ``preset="paper"``; ``allowed_texts=[...]``.

        Raises:
            ImageError: an image cannot be read; the message gives its name and index.
            TypeError: an unknown option.
            ValueError: an option that cannot be, or a model that reads clips.
        """
        self._require_kind(video=False)
        sources, single = as_list(images)
        batching = Batching(batch_size=batch_size, on_error=on_error)
        results = list(self._captions(sources, prompt, batching, options))
        return results[0] if single else results

    def caption_each(
        self,
        images: Iterable[Image],
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Generator[Result, None, None]:
        """What each image shows, for more images than one would list: as ``caption``, one result after another.

        Images are taken from the iterable as they are needed, by default a few hundred ahead of their results at most,
        and must stay as they are until then. Results come in order, as soon as those that are decoded together are
        ready. Closing the generator ends the work.

        Args:
            images: Any iterable of images, each as in ``caption``.
            prompt, batch_size, on_error, **options: As in ``caption``.

        Raises:
            As ``caption``; of a bad image after the results of those before it. TypeError too for a single image.
        """
        self._require_kind(video=False)
        batching = Batching(batch_size=batch_size, on_error=on_error)
        return self._captions(as_iterable(images, "images"), prompt, batching, options)

    @overload
    def answer(
        self,
        images: Many,
        questions: str | Many,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> list[Result]: ...
    @overload
    def answer(
        self,
        images: Image,
        questions: Many,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> list[Result]: ...
    @overload
    def answer(
        self,
        images: Image,
        questions: str,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result: ...
    def answer(
        self,
        images: Image | Many,
        questions: str | Many,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result | list[Result]:
        """Answers to questions about images.

        Args:
            images: One image or a list, as in ``caption``.
            questions: One question, asked of every image; or a list. A list of questions about one image is answered
                on one encoding of it; lists of both go in pairs.
            batch_size, on_error, **options: As in ``caption``.

        Raises:
            As ``caption``; ValueError too for lists of different lengths.
        """
        self._require_kind(video=False)
        return self._answer(images, questions, Batching(batch_size=batch_size, on_error=on_error), options)

    def answer_each(
        self,
        images: Iterable[Image],
        questions: str | Many,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Generator[list[Result], None, None]:
        """The answers about each image to all of the questions, one list after another: as ``caption_each``.

        Args:
            images, batch_size, on_error, **options: As in ``caption_each``.
            questions: One or a list, asked of every image.
        """
        self._require_kind(video=False)
        (prompts,) = self._question_prompts(questions, 1, True)
        chosen, batching = self._options(options, prompts), Batching(batch_size=batch_size, on_error=on_error)
        images = as_iterable(images, "images")
        return self._generate(images, itertools.repeat(prompts), chosen, batching, show_prompt=False)

    @overload
    def caption_video(self, videos: Image, **arguments: Any) -> Result: ...
    @overload
    def caption_video(self, videos: Many, **arguments: Any) -> Any: ...  # one result for the frames of one clip
    def caption_video(
        self,
        videos: Video | Many,
        *,
        prompt: str | None = None,
        num_frames: int | None = None,
        sampling: Sampling = "uniform",
        sampling_seed: int = 0,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result | list[Result]:
        """What a clip shows; one result for one video, a list for a list.

        Args:
            videos: A video file as path, bytes or binary file object; an animated image; a uint8 array (T, H, W, 3);
                a list of frames (PIL images, or arrays (H, W, 3)); or a list of any of these. Frames given as paths
                go into a list of their own: ``[["1.png", "2.png"]]``.
            prompt, batch_size, on_error, **options: As in ``caption``.
            num_frames: Frames taken of a video; None: as many as the model was trained with.
            sampling, sampling_seed: Which frames; see ``gitfast.inputs.video.sample_indices``.

        Raises:
            VideoError: a video cannot be read; the message gives its name and index.
            ValueError: also for a model that reads single images.
        """
        self._require_kind(video=True)
        sources, single = as_list(videos, video=True)
        clips = ClipSampling(num_frames=num_frames, sampling=sampling, seed=sampling_seed)
        batching = Batching(batch_size=batch_size, on_error=on_error, clips=clips)
        results = list(self._captions(sources, prompt, batching, options))
        return results[0] if single else results

    @overload
    def answer_video(self, videos: Image, questions: str, **arguments: Any) -> Result: ...
    @overload
    def answer_video(self, videos: Image, questions: Many, **arguments: Any) -> list[Result]: ...
    @overload
    def answer_video(self, videos: Many, questions: str | Many, **arguments: Any) -> Any: ...
    def answer_video(
        self,
        videos: Video | Many,
        questions: str | Many,
        *,
        num_frames: int | None = None,
        sampling: Sampling = "uniform",
        sampling_seed: int = 0,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Result | list[Result]:
        """Answers to questions about clips; videos as in ``caption_video``, questions as in ``answer``."""
        self._require_kind(video=True)
        clips = ClipSampling(num_frames=num_frames, sampling=sampling, seed=sampling_seed)
        batching = Batching(batch_size=batch_size, on_error=on_error, clips=clips)
        return self._answer(videos, questions, batching, options)

    @overload
    def encode(self, inputs: Many, *, batch_size: int | None = None) -> list[ImagePrefix]: ...
    @overload
    def encode(self, inputs: ImageSource, *, batch_size: int | None = None) -> ImagePrefix: ...
    def encode(self, inputs: VideoSource, *, batch_size: int | None = None) -> ImagePrefix | list[ImagePrefix]:
        """The image as the decoder reads it: to be computed once and used in any number of calls.

        Args:
            inputs: One image or a list; for a video model one clip or a list, as in ``caption_video``.
            batch_size: Inputs encoded together, as in ``caption``.

        Returns:
            Immutable prefixes, valid for this model only; ``prefix.nbytes`` says what each holds.
        """
        sources, single = as_list(inputs, video=self.config.is_video)
        prefixes = self._encode(sources, batch_size)
        return next(prefixes) if single else list(prefixes)

    @overload
    def classify(
        self,
        inputs: Image,
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> list[Label]: ...
    @overload
    def classify(
        self,
        inputs: Many,  # of a video model perhaps the frames of one clip, hence Any
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> Any: ...
    def classify(
        self,
        inputs: Image | Video | Many,
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> list[Label] | list[list[Label]]:
        """Which of the labels the model would write, most probable first; a list of such lists for a list of inputs.

        Args:
            inputs: As in ``encode``.
            labels: Texts, different from each other once they are tokens.
            prompt: What the label follows, a question for example.
            method: "trie" is the GIT paper's: at every token the probability is shared among the labels' tokens that
                may follow. "score" compares whole labels by the model's probability of each.
            top_k: Labels returned; None: all.
            batch_size: As in ``caption``.

        Raises:
            ValueError: labels that are none, empty or the same.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {top_k}")
        encoded = encode_labels(labels, self.processor.tokenizer, self.config.eos_token_id)
        sources, single = as_list(inputs, video=self.config.is_video)
        rankings = []
        for prefix in self._encode(sources, batch_size):
            logprobs = pipeline.score(self.engine, prefix, self.processor.tokenizer.prompt(prompt), encoded)
            rankings.append(rank_labels(labels, encoded, logprobs, method)[:top_k])
        return rankings[0] if single else rankings

    @overload
    def score(
        self,
        image: Image | Video,
        texts: str,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
    ) -> float: ...
    @overload
    def score(
        self,
        image: Image | Video,
        texts: Many,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
    ) -> list[float]: ...
    def score(
        self,
        image: Image | Video,
        texts: str | Many,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
    ) -> float | list[float]:
        """Log-probability of texts about one image or clip, the end of the text included.

        Args:
            image: One input, as in ``encode``.
            texts: One text or a list of them; all run on one encoding.
            prompt: What the texts follow, a question for example.
            normalize: "sum" over the tokens, or their "mean".
        """
        if normalize not in ("sum", "mean"):
            raise ValueError(f"normalize: expected 'sum' or 'mean', got {normalize!r}")
        tokenizer, eos = self.processor.tokenizer, self.config.eos_token_id
        encoded = [[*tokenizer.encode(text), eos] for text in ([texts] if isinstance(texts, str) else texts)]
        prefix = self._encode_one(image)
        logprobs = pipeline.score(self.engine, prefix, tokenizer.prompt(prompt), encoded)
        scores = [float(x.sum(dtype=np.float64)) / (len(x) if normalize == "mean" else 1) for x in logprobs]
        return scores[0] if isinstance(texts, str) else scores

    def stream(
        self, image: Image | Video, *, question: str | None = None, prompt: str | None = None, **options: Any
    ) -> Generator[str, None, Result]:
        """The caption or answer of one image or clip, piece by piece as it is generated.

        The pieces joined are the text of the ``Result`` that the generator returns. Closing it ends the generation
        within one token. Options as in ``caption``, without beams and with one sequence.
        """
        if question is not None and prompt is not None:
            raise ValueError("question, prompt: expected at most one of them")
        ids = self.processor.tokenizer.prompt(prompt if question is None else question)
        chosen = self._options(options, [ids])
        if chosen.num_beams != 1 or chosen.num_return_sequences != 1:
            raise ValueError("num_beams, num_return_sequences: streaming needs 1; with more, no token is final")
        prefix = self._encode_one(image)
        return self._stream(prefix, ids, ids[1:] if question is None else [], chosen)

    def _stream(
        self, prefix: ImagePrefix, prompt: list[int], shown: list[int], options: GenerationOptions
    ) -> Generator[str, None, Result]:
        decoder = StreamDecoder(self.processor.tokenizer)
        if piece := decoder.feed(shown):
            yield piece
        tokens = stream_tokens(lambda on_token: self.engine.generate([prefix], [prompt], options, on_token))
        try:
            while True:
                if piece := decoder.feed(next(tokens)):
                    yield piece
        except StopIteration as end:
            if piece := decoder.finish():
                yield piece
            return pipeline.make_result(self.processor, end.value[0], shown)
        finally:
            tokens.close()

    def _captions(
        self,
        sources: Iterable[Any],
        prompt: str | None,
        batching: Batching,
        options: dict[str, Any],
    ) -> Generator[Result, None, None]:
        ids = self.processor.tokenizer.prompt(prompt)
        chosen = self._options(options, [ids])
        rows = self._generate(sources, itertools.repeat([ids]), chosen, batching, show_prompt=True)
        return (result for (result,) in rows)

    def _answer(
        self,
        inputs: Any,
        questions: str | Many,
        batching: Batching,
        options: dict[str, Any],
    ) -> Result | list[Result]:
        sources, single = as_list(inputs, video=self.config.is_video)
        prompts = self._question_prompts(questions, len(sources), single)
        chosen = self._options(options, [ids for rows in prompts for ids in rows])
        rows = self._generate(sources, prompts, chosen, batching, show_prompt=False)
        results = [result for answers in rows for result in answers]
        return results[0] if single and isinstance(questions, str) else results

    def _question_prompts(self, questions: str | Many, num_inputs: int, single: bool) -> list[list[list[int]]]:
        """For every input the prompts of its questions."""
        tokenizer = self.processor.tokenizer
        if isinstance(questions, str):
            return [[tokenizer.prompt(questions)]] * num_inputs
        if not isinstance(questions, (list, tuple)) or not all(isinstance(q, str) for q in questions):
            raise TypeError(f"questions: expected a text or a list of texts, got {type(questions).__name__}")
        prompts = [tokenizer.prompt(question) for question in questions]
        if single:
            return [prompts]
        if len(prompts) != num_inputs:
            raise ValueError(f"questions: expected one, or one for each of {num_inputs} inputs, got {len(prompts)}")
        return [[ids] for ids in prompts]

    def _options(self, values: dict[str, Any], prompts: Sequence[Sequence[int]]) -> GenerationOptions:
        longest = max(map(len, prompts), default=1)
        room = self.config.max_position_embeddings - longest
        return make_options(values, self.processor.tokenizer, room=room)

    def _generate(
        self,
        sources: Iterable[Any],
        prompts: Iterable[Prompts],
        options: GenerationOptions,
        batching: Batching,
        *,
        show_prompt: bool,
    ) -> Generator[list[Result], None, None]:
        return pipeline.generate(
            self.engine, self.processor, sources, prompts, options, batching, show_prompt=show_prompt
        )

    def _encode(self, sources: Sequence[Any], batch_size: int | None) -> Iterator[ImagePrefix]:
        for batch in pipeline.encode(self.engine, self.processor, sources, Batching(batch_size=batch_size)):
            yield from cast("list[ImagePrefix]", batch.prefixes)  # on_error="raise": no errors among them

    def _encode_one(self, source: Any) -> ImagePrefix:
        sources, single = as_list(source, video=self.config.is_video)
        if not single:
            raise ValueError(f"image: expected one input, got a list of {len(sources)}")
        return next(self._encode(sources, 1))

    def _require_kind(self, *, video: bool) -> None:
        if video and not self.config.is_video:
            raise ValueError(f"{self.name}: reads single images, not clips: use caption or answer")
        if not video and self.config.is_video:
            frames = self.config.num_image_with_embedding
            raise ValueError(f"{self.name}: reads clips of {frames} frames: use caption_video or answer_video")
