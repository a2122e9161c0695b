"""A loaded model: images or clips in; captions, answers, labels and scores out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack, cast, overload

import numpy as np

from gitfast import arguments
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.generation import GenerationDefaults
from gitfast.engines.base import Engine
from gitfast.errors import ArgumentError, EngineError
from gitfast.inputs.image import ImageSource
from gitfast.inputs.processor import Processor
from gitfast.inputs.sources import as_iterable, as_list
from gitfast.inputs.tokenizer import StreamDecoder
from gitfast.pipeline import batching as pipeline
from gitfast.pipeline.batching import Prompts
from gitfast.pipeline.classification import Method, encode_labels, rank_labels
from gitfast.pipeline.options import (
    Batching,
    ReadingOptions,
    StreamOptions,
    TaskOptions,
    check_options,
    make_batching,
    make_options,
)
from gitfast.pipeline.streaming import stream_tokens
from gitfast.results import Label, Result
from gitfast.types import Generation, GenerationOptions, ImagePrefix, TokenCallback

Input: TypeAlias = "ImageSource | ImagePrefix"
# Several inputs; or, for a video model, the frames of one clip, so that a task may return one result: hence Any.
Many: TypeAlias = list[Any] | tuple[Any, ...]


class Model:
    """A GIT checkpoint on an engine; ``gitfast.load`` makes one. Calls are thread-safe.

    Every task takes what the model reads. An image model reads images: a path, bytes, a binary file object, a PIL
    image, or a uint8 array (H, W, 3). A video model reads clips: a video file as path, bytes or binary file object; an
    animated image; a uint8 array (T, H, W, 3); or a list of frames (PIL images, or arrays (H, W, 3)). Frames given as
    paths go into a list of their own: ``[["1.png", "2.png"]]``. A prefix from ``encode`` stands for its input in every
    call. An input of the other kind is an error that says what to do.

    One input gives one result, a list gives a list in its order. Inputs are encoded ``batch_size`` at a time, so memory
    does not grow with their number; each is encoded once, whatever the number of questions, beams or samples.

    A model that ``gitfast.load`` made is pickled as the arguments of that call and loaded again by them, so that it can
    be sent to processes. A token is left out: other processes take huggingface_hub's own.

    Attributes:
        engine: The engine that computes; ``engine.name`` says which.
        processor: Turns images, clips and text into the engine's inputs.
        config: The shapes of the model.
        name: The model's name in messages.
    """

    def __init__(
        self,
        engine: Engine,
        processor: Processor,
        config: GitConfig,
        name: str = "model",
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.config = config
        self.name = name
        self.generation_defaults = generation_defaults or GenerationDefaults()
        self._reload: Callable[[], Model] | None = None

    def __repr__(self) -> str:
        return f"<gitfast.Model {self.name} on the {self.engine.name} engine>"

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        if self._reload is None:
            raise TypeError("a model is pickled by what gitfast.load was given, and this one was made otherwise")
        return self._reload, ()

    def remember(self, load: Callable[..., Model], values: Mapping[str, Any]) -> Model:
        """Keep the call that made this model, for pickling; return the model."""
        self._reload = functools.partial(load, **values)
        return self

    @overload
    def caption(self, inputs: Input, *, prompt: str | None = None, **options: Unpack[TaskOptions]) -> Result: ...
    @overload
    def caption(self, inputs: Many, *, prompt: str | None = None, **options: Unpack[TaskOptions]) -> Any: ...
    def caption(
        self, inputs: Input | Many, *, prompt: str | None = None, **options: Unpack[TaskOptions]
    ) -> Result | list[Result]:
        """Say what an image or clip shows.

        Args:
            inputs: One image, or one clip for a video model; or a list of them.
            prompt: The beginning of the caption.
            **options: ``gitfast.pipeline.options.TaskOptions``: batch_size, workers, on_error, cancel, num_frames,
                sampling, sampling_seed, preset, allowed_texts, and the fields of ``GenerationOptions``.

        Raises:
            ImageError: an input cannot be read, or is not of the kind that the model reads; the message gives its name
                and index.
            ArgumentError: an option that is unknown, or of another type.
            ValueError: an option that the search cannot take, or a text longer than the model's positions.
            CancelledError: ``cancel`` was called.
            DeadlineError: the time of ``cancel`` ran out.
        """
        sources, single = self._as_list(inputs)
        results = list(self._captions(sources, prompt, options))
        return results[0] if single else results

    def caption_each(
        self, inputs: Iterable[Any], prompt: str | None = None, **options: Unpack[TaskOptions]
    ) -> Generator[Result, None, None]:
        """Caption a stream of inputs, more than fit a list: as ``caption``, one result after another.

        Inputs are taken from the iterable as they are needed, by default a few hundred ahead of their results at most,
        and must stay as they are until then. Results come in order, as soon as those that are decoded together are
        ready. Closing the generator ends the work.

        Args:
            inputs: Any iterable of inputs, each as in ``caption``.
            prompt: The beginning of every caption.
            **options: As in ``caption``.

        Raises:
            ArgumentError: as in ``caption``, and for a single input.
            ImageError: an input cannot be read; raised after the results of those before it.
        """
        return self._captions(as_iterable(inputs, self._noun), prompt, options)

    @overload
    def answer(self, inputs: Input, questions: str, **options: Unpack[TaskOptions]) -> Result: ...
    @overload
    def answer(self, inputs: Input, questions: Many, **options: Unpack[TaskOptions]) -> list[Result]: ...
    @overload
    def answer(self, inputs: Many, questions: str | Many, **options: Unpack[TaskOptions]) -> Any: ...
    def answer(
        self, inputs: Input | Many, questions: str | Many, **options: Unpack[TaskOptions]
    ) -> Result | list[Result]:
        """Answer questions about images or clips.

        Args:
            inputs: One input or a list, as in ``caption``.
            questions: One question, asked about every input; or a list. A list of questions about one input is answered
                on one encoding of it; lists of both go in pairs.
            **options: As in ``caption``.

        Raises:
            ArgumentError: as in ``caption``, and for lists of different lengths.
            ImageError: as in ``caption``.
        """
        sources, single = self._as_list(inputs)
        batching = self._batching(options, TaskOptions)
        prompts = self._question_prompts(questions, len(sources), single, batching)
        all_prompts = [ids for row in prompts for ids in row]
        rows = self._generate(sources, prompts, all_prompts, options, batching, show_prompt=False)
        results = [result for answers in rows for result in answers]
        return results[0] if single and isinstance(questions, str) else results

    def answer_each(
        self, inputs: Iterable[Any], questions: str | Many, **options: Unpack[TaskOptions]
    ) -> Generator[list[Result], None, None]:
        """Answer all of the questions about each input, one list of results after another: as ``caption_each``.

        Args:
            inputs: Any iterable of inputs, each as in ``caption``.
            questions: One or a list, asked about every input.
            **options: As in ``caption``.
        """
        batching = self._batching(options, TaskOptions)
        (prompts,) = self._question_prompts(questions, 1, True, batching)
        sources = as_iterable(inputs, self._noun)
        return self._generate(sources, itertools.repeat(prompts), prompts, options, batching, show_prompt=False)

    @overload
    def encode(self, inputs: Input, **options: Unpack[ReadingOptions]) -> ImagePrefix: ...
    @overload
    def encode(self, inputs: Many, **options: Unpack[ReadingOptions]) -> Any: ...
    def encode(self, inputs: Input | Many, **options: Unpack[ReadingOptions]) -> ImagePrefix | list[ImagePrefix]:
        """Encode inputs as the decoder reads them: to be computed once and used in any number of calls.

        Args:
            inputs: One input or a list, as in ``caption``.
            **options: ``gitfast.pipeline.options.ReadingOptions``: batch_size, workers, cancel, num_frames, sampling,
                sampling_seed.

        Returns:
            Immutable prefixes, valid for this model only; ``prefix.nbytes`` says what each holds.
        """
        sources, single = self._as_list(inputs)
        prefixes = self._encode(sources, self._batching(options, ReadingOptions))
        return next(prefixes) if single else list(prefixes)

    @overload
    def classify(
        self,
        inputs: Input,
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        **options: Unpack[ReadingOptions],
    ) -> list[Label]: ...
    @overload
    def classify(
        self,
        inputs: Many,
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        **options: Unpack[ReadingOptions],
    ) -> Any: ...
    def classify(
        self,
        inputs: Input | Many,
        labels: Sequence[str],
        *,
        prompt: str | None = None,
        method: Method = "trie",
        top_k: int | None = None,
        **options: Unpack[ReadingOptions],
    ) -> list[Label] | list[list[Label]]:
        """Rank labels by how probably the model would write each; one list per input, most probable first.

        Args:
            inputs: One input or a list, as in ``caption``.
            labels: Texts, different from each other once they are tokens.
            prompt: The text that the label follows, a question for example.
            method: "trie" is the GIT paper's: at every token the probability is shared among the labels' tokens that
                may follow. "score" compares whole labels by the model's probability of each.
            top_k: Labels returned; None: all.
            **options: As in ``encode``.

        Raises:
            ArgumentError: labels that are none, empty or the same.
        """
        if top_k is not None:
            top_k = arguments.integer("top_k", top_k, minimum=1)
        arguments.choice("method", method, ("trie", "score"))
        labels = arguments.texts("labels", labels)
        batching = self._batching(options, ReadingOptions)
        encoded = encode_labels(labels, self.processor.tokenizer, self.config.eos_token_id, batching)
        ids = self._prompt("prompt", prompt)
        sources, single = self._as_list(inputs)
        rankings = []
        for prefix in self._encode(sources, batching):
            logprobs = pipeline.score(self.engine, prefix, ids, encoded, batching)
            rankings.append(rank_labels(labels, encoded, logprobs, method)[:top_k])
        return rankings[0] if single else rankings

    @overload
    def score(
        self,
        source: Input | Many,
        texts: str,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
        **options: Unpack[ReadingOptions],
    ) -> float: ...
    @overload
    def score(
        self,
        source: Input | Many,
        texts: Many,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
        **options: Unpack[ReadingOptions],
    ) -> list[float]: ...
    def score(
        self,
        source: Input | Many,
        texts: str | Many,
        *,
        prompt: str | None = None,
        normalize: Literal["sum", "mean"] = "sum",
        **options: Unpack[ReadingOptions],
    ) -> float | list[float]:
        """Compute the log-probability of texts about one image or clip, the end of each text included.

        Args:
            source: One input, as in ``caption``.
            texts: One text or a list of them; all run on one encoding.
            prompt: The text that the texts follow, a question for example.
            normalize: "sum" over the tokens, or their "mean".
            **options: As in ``encode``.
        """
        arguments.choice("normalize", normalize, ("sum", "mean"))
        tokenizer, eos = self.processor.tokenizer, self.config.eos_token_id
        listed = [arguments.text("texts", texts)] if isinstance(texts, str) else arguments.texts("texts", texts)
        batching = self._batching(options, ReadingOptions)
        encoded = [[*tokenizer.encode(text), eos] for text in batching.polled(listed)]
        ids = self._prompt("prompt", prompt)
        logprobs = pipeline.score(self.engine, self._encode_one(source, batching), ids, encoded, batching)
        scores = [float(x.sum(dtype=np.float64)) / (len(x) if normalize == "mean" else 1) for x in logprobs]
        return scores[0] if isinstance(texts, str) else scores

    def attend(
        self, source: Input | Many, text: str, *, prompt: str | None = None, **options: Unpack[ReadingOptions]
    ) -> np.ndarray:
        """Show where the model looks as it writes ``text``: attention to the image tokens, float32 (tokens, P).

        Row i belongs to token i of ``text``, as ``processor.tokenizer.encode`` gives them, and holds the attention of
        the position that predicts it. P are the image tokens: of each frame a class token, then its patches by rows.
        The weights are those of the decoder's softmax over image and text, averaged over all heads and layers, each
        alike; the text's are left out, so that a row sums to the image's share.

        Args:
            source: One input, as in ``caption``.
            text: The text that the model wrote, or might have written.
            prompt: The text before ``text``, a question for example.
            **options: As in ``encode``.

        Raises:
            EngineError: the engine keeps no attention.
            ArgumentError: the text is empty.
            ValueError: the text is longer than the model's positions.
        """
        ids = self.processor.tokenizer.encode(arguments.text("text", text))
        if not ids:
            raise ArgumentError("text: expected at least one token, got an empty text")
        if not self.engine.attends:
            raise EngineError(f"{self.engine.name} engine: keeps no attention; the cpu and reference engines do")
        before = self._prompt("prompt", prompt)
        weights = self.engine.attend(
            self._encode_one(source, self._batching(options, ReadingOptions)), [*before, *ids[:-1]]
        )
        return weights[len(before) - 1 :]

    def stream(
        self,
        source: Input | Many,
        *,
        question: str | None = None,
        prompt: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> Generator[str, None, Result]:
        """Caption one image or clip, or answer one question about it, piece by piece as the text is generated.

        The pieces joined are the text of the ``Result`` that the generator returns. Closing it ends the generation
        within one token.

        Args:
            source: One input, as in ``caption``.
            question: A question to answer; None: caption.
            prompt: The beginning of the caption; not together with a question.
            **options: As in ``caption``, without ``on_error`` and beams, and with one sequence.
        """
        if question is not None and prompt is not None:
            raise ArgumentError("question, prompt: expected at most one of them")
        ids = self._prompt("prompt", prompt) if question is None else self._prompt("question", question)
        batching = self._batching(options, StreamOptions)
        chosen = self._options(options, [ids])
        if chosen.num_beams != 1 or chosen.num_return_sequences != 1:
            raise ArgumentError("num_beams, num_return_sequences: streaming needs 1; with more, no token is final")
        prefix = self._encode_one(source, batching)
        return self._stream(prefix, ids, ids[1:] if question is None else [], chosen, batching)

    def _stream(
        self, prefix: ImagePrefix, prompt: list[int], shown: list[int], options: GenerationOptions, batching: Batching
    ) -> Generator[str, None, Result]:
        decoder = StreamDecoder(self.processor.tokenizer)
        if piece := decoder.feed(shown):
            yield piece

        def generate(on_token: TokenCallback) -> list[list[Generation]]:
            return self.engine.generate([prefix], [prompt], options, on_token, **batching.cancelling())

        tokens = stream_tokens(generate)
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

    @property
    def _noun(self) -> str:
        """Return the word for the inputs in messages."""
        return "videos" if self.config.is_video else "images"

    def _as_list(self, inputs: Any) -> tuple[list[Any], bool]:
        return as_list(inputs, video=self.config.is_video)

    def _prompt(self, name: str, text: str | None) -> list[int]:
        """Return the token ids of the argument ``name``, a question or the beginning of a text."""
        if text is None and self.generation_defaults.bos_token_id is not None:
            return [self.generation_defaults.bos_token_id]
        return self.processor.tokenizer.prompt(None if text is None else arguments.text(name, text))

    def _question_prompts(
        self, questions: str | Many, num_inputs: int, single: bool, batching: Batching
    ) -> list[list[list[int]]]:
        """Return for every input the prompts of its questions."""
        if isinstance(questions, str):
            return [[self._prompt("questions", questions)]] * num_inputs
        texts = arguments.texts("questions", questions)
        prompts = [self._prompt("questions", text) for text in batching.polled(texts)]
        if single:
            return [prompts]
        if len(prompts) != num_inputs:
            raise ArgumentError(f"questions: expected one, or one for each of {num_inputs} inputs, got {len(prompts)}")
        return [[ids] for ids in prompts]

    def _captions(
        self, sources: Iterable[Any], prompt: str | None, options: TaskOptions
    ) -> Generator[Result, None, None]:
        prompts = [self._prompt("prompt", prompt)]
        batching = self._batching(options, TaskOptions)
        rows = self._generate(sources, itertools.repeat(prompts), prompts, options, batching, show_prompt=True)
        return (result for (result,) in rows)

    def _generate(
        self,
        sources: Iterable[Any],
        prompts: Iterable[Prompts],
        all_prompts: Prompts,  # every one of them once or more: they decide how long the new text may be
        options: TaskOptions,
        batching: Batching,
        *,
        show_prompt: bool,
    ) -> Generator[list[Result], None, None]:
        chosen = self._options(options, all_prompts)
        return pipeline.generate(
            self.engine, self.processor, sources, prompts, chosen, batching, show_prompt=show_prompt
        )

    def _options(self, options: StreamOptions, prompts: Prompts) -> GenerationOptions:
        longest = max(map(len, prompts), default=1)
        room = self.config.max_position_embeddings - longest
        defaults = self.generation_defaults.for_prompt(longest)
        return make_options(options, self.processor.tokenizer, room=room, defaults=defaults)

    def _batching(self, options: ReadingOptions, kind: type) -> Batching:
        """Make the settings of reading; ``options`` may only hold keys of ``kind``."""
        check_options(options, kind)
        frames = [name for name in ("num_frames", "sampling", "sampling_seed") if name in options]
        if frames and not self.config.is_video:
            raise ArgumentError(f"{', '.join(frames)}: {self.name} reads single images, which have no frames to choose")
        return make_batching(options)

    def _encode(self, sources: Sequence[Any], batching: Batching) -> Iterator[ImagePrefix]:
        for batch in pipeline.encode(self.engine, self.processor, sources, batching):
            yield from cast("list[ImagePrefix]", batch.prefixes)  # on_error="raise": no errors among them

    def _encode_one(self, source: Any, batching: Batching) -> ImagePrefix:
        sources, single = self._as_list(source)
        if not single:
            raise ArgumentError(f"source: expected one input, got a list of {len(sources)}")
        (prefix,) = self._encode(sources, batching)
        return prefix
