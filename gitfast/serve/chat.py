"""``POST /v1/chat/completions``: captions and answers for clients of OpenAI's API.

Every image of the request is read with every question; each pair has ``n`` choices, images first, then questions.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gitfast.inputs.tokenizer import Tokenizer
from gitfast.results import Result
from gitfast.serve.body import check_texts
from gitfast.serve.errors import ApiError, internal_error, invalid
from gitfast.serve.inference import Inference, check_work, sampling_options, search_options
from gitfast.serve.jobs import Job
from gitfast.serve.logs import log
from gitfast.serve.schemas import ChatRequest, TextPart, VideoPart
from gitfast.serve.settings import Settings


@dataclass(frozen=True)
class Parts:
    """The images of a request as URLs, each with its place in it, and its questions; none: a caption."""

    urls: list[tuple[str, str]]  # place, URL
    questions: list[str]


def parts_of(request: ChatRequest, settings: Settings, *, video: bool) -> Parts:
    """Split a request into parts. Raises ``ApiError``: no image, too many parts, or a clip for a model of images."""
    urls, questions = [], []
    for m, message in enumerate(request.messages):
        where = f"messages[{m}].content"
        content = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for p, part in enumerate(content):
            if isinstance(part, TextPart):
                if part.text.strip():
                    questions.append(part.text)
                continue
            name = f"{where}[{p}].{part.type}.url"
            if isinstance(part, VideoPart):
                if not video:
                    raise invalid(f"{name}: this model reads images, not clips", name)
                urls.append((name, part.video_url.url))
            else:
                urls.append((name, part.image_url.url))
    if not urls:
        raise invalid("messages: expected an image_url part", "messages", code="missing_parameter")
    if len(urls) > settings.max_images:
        raise invalid(f"messages: at most {settings.max_images} images, got {len(urls)}", "messages")
    if len(questions) > settings.max_texts:
        raise invalid(f"messages: at most {settings.max_texts} questions, got {len(questions)}", "messages")
    check_texts(questions, settings)
    return Parts(urls, questions)


def options_of(request: ChatRequest, parts: Parts, settings: Settings) -> dict[str, Any]:
    """Return options of ``Model.caption``. Raises ``ApiError``."""
    sampling = sampling_options(temperature=request.temperature, top_p=request.top_p, seed=request.seed)
    options = search_options(settings, sampling, num_beams=None, num_texts=request.n, name="n")
    return check_work(
        settings,
        images=len(parts.urls),
        prompts=max(1, len(parts.questions)),
        options=options,
        max_new_tokens=request.token_limit,
        name="max_tokens" if request.max_tokens else "max_completion_tokens",
    )


@dataclass(frozen=True)
class Usage:
    """Tokens in and out; those of an image count once for each of its prompts."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Chat:
    """A chat request in the form that its job needs."""

    request: ChatRequest
    questions: Sequence[str]
    options: dict[str, Any]
    read: Callable[[], list[bytes]]  # the images; may fetch them

    def run(self, inference: Inference) -> tuple[list[Result], Usage]:
        """Generate all choices' texts, in order. A stream emits (choice, piece) and (choice, result) on the way."""
        prefixes = inference.encode(self.read())
        choices: list[Result] = []
        prompt_tokens = 0
        tokenizer = inference.model.processor.tokenizer
        for prefix in prefixes:
            for result in self._of_image(inference, prefix, len(choices)):
                choices += [result, *result.alternatives]
            prompt_tokens += sum(prefix.num_tokens + len(tokenizer.prompt(text)) for text in self._prompts)
        return choices, Usage(prompt_tokens, sum(len(choice.token_ids) for choice in choices))

    @property
    def _prompts(self) -> Sequence[str | None]:
        """Return the questions; None asks for a caption."""
        return self.questions or [None]

    def _of_image(self, inference: Inference, prefix: Any, first: int) -> list[Result]:
        if self.request.stream and self.request.n == 1:
            return self._stream(inference, prefix, first)
        if self.questions:
            results = inference.answers(prefix, self.questions, self.options)
        else:
            results = inference.captions([prefix], None, self.options)
        if self.request.stream:  # with several sequences none is final before all are
            texts = [choice for result in results for choice in (result, *result.alternatives)]
            for index, choice in enumerate(texts, first):
                inference.job.emit((index, choice.text))
                inference.job.emit((index, choice))
        return results

    def _stream(self, inference: Inference, prefix: Any, first: int) -> list[Result]:
        options = {k: v for k, v in self.options.items() if k not in ("num_beams", "num_return_sequences")}
        results = []
        for index, question in enumerate(self._prompts, first):
            emit = partial(_emit, inference.job, index)
            results.append(inference.stream(prefix, question, options, emit))
            emit(results[-1])
        return results


def _emit(job: Job[Any], index: int, piece: str | Result) -> bool:
    return job.emit((index, piece))


class Replies:
    """The JSON of one request's reply, whole or in chunks."""

    def __init__(self, model: str, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def whole(self, results: Sequence[Result], usage: Usage, timings: dict[str, float]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": self._logprobs_of(result),
                "finish_reason": result.finish_reason,
            }
            for index, result in enumerate(results)
        ]
        return self._head | {
            "object": "chat.completion",
            "choices": choices,
            "usage": usage.body(),
            "timings": timings,
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return sse(self._head | {"object": "chat.completion.chunk", "choices": choices} | more)

    def delta(self, index: int, delta: dict[str, str], *, result: Result | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if result is not None:
            choice |= {"logprobs": self._logprobs_of(result), "finish_reason": result.finish_reason}
        return self.chunk([choice])

    async def stream(
        self, job: Job[Any], first: Any, pieces: AsyncIterator[Any], *, include_usage: bool
    ) -> AsyncIterator[str]:
        """Stream server-sent events: the pieces of all choices, ``first`` and then ``pieces``; then ``[DONE]``.

        An error on the way is an event of its own, in the shape of an error's body.
        """
        begun: set[int] = set()
        try:
            piece = first
            while piece is not None:
                index, content = piece
                if index not in begun:
                    begun.add(index)
                    yield self.delta(index, {"role": "assistant", "content": ""})
                if isinstance(content, Result):
                    yield self.delta(index, {}, result=content)
                elif content:
                    yield self.delta(index, {"content": content})
                piece = await anext(pieces, None)
            if include_usage:
                (_, usage), _ = await job.result()
                yield self.chunk([], usage=usage.body())
        except ApiError as error:
            yield sse(error.body())
        except Exception as error:
            log("failed", level=logging.ERROR, error=error, route="/v1/chat/completions")
            yield sse(internal_error().body())
        yield "data: [DONE]\n\n"

    def _logprobs_of(self, result: Result) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = []
        for token, logprob in zip(result.token_ids, result.token_logprobs, strict=True):
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            content.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
        return {"content": content, "refusal": None}


def sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"
