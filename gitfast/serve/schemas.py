"""The arguments of the routes, checked by name and type. Other arguments are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Json(BaseModel):
    """A part of a JSON body: a number is no text, and true is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Texts(BaseModel):
    """Arguments that come as texts, in a form or a query string."""

    model_config = ConfigDict(extra="forbid")


class UrlPart(_Json):
    """The URL of an image or clip: a data URI, or a URL of a host that the server was told to trust."""

    url: str
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Ignored: the model has one resolution.")


class TextPart(_Json):
    """A question; empty text asks for a caption."""

    type: Literal["text"]
    text: str


class ImagePart(_Json):
    type: Literal["image_url"]
    image_url: UrlPart


class VideoPart(_Json):
    """A clip, for video models."""

    type: Literal["video_url"]
    video_url: UrlPart


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Json):
    role: Literal["user"] = Field(description="GIT reads one turn of a user: no system prompt, no history.")
    content: str | list[Part]


class StreamOptions(_Json):
    include_usage: bool = False


class ChatRequest(_Json):
    """One or several images and questions about them; no question asks for a caption.

    Several questions are answered on one encoding of the image, each in a choice of its own.
    """

    model: str = Field(description="The name that /v1/models gives.")
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, description="Choices for each question; without sampling, those of a beam search of n.")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="Another name of max_tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 or nothing: no sampling.")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """Drop nulls, which clients send for "not given", whatever the field."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None or name not in cls.model_fields}

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens, max_completion_tokens: expected one of them")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


class GenerateOptions(_Texts):
    """Options of text generation; names and meanings are those of ``gitfast.GenerationOptions``."""

    max_new_tokens: int | None = Field(None, ge=1)
    num_beams: int | None = Field(None, ge=1)
    num_return_sequences: int | None = Field(None, ge=1)
    length_penalty: float | None = Field(None, ge=-10, le=10)
    temperature: float | None = Field(None, ge=0, le=2, description="0 or nothing: no sampling.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**63)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)


class CaptionOptions(GenerateOptions):
    prompt: str | None = Field(None, description="How the caption begins.")


class AnswerOptions(GenerateOptions):
    question: list[str] = Field(min_length=1, description="May be repeated; all are asked of every image.")


class ClassifyOptions(_Texts):
    label: list[str] = Field(min_length=1, description="Repeated, once for each label.")
    prompt: str | None = Field(None, description="What the label follows, a question for example.")
    method: Literal["trie", "score"] = "trie"
    top_k: int | None = Field(None, ge=1)


class ScoreOptions(_Texts):
    text: list[str] = Field(min_length=1, description="May be repeated.")
    prompt: str | None = Field(None, description="What the texts follow.")
    normalize: Literal["sum", "mean"] = "sum"


class AttendOptions(_Texts):
    text: str | None = Field(None, description="Nothing: the image's caption.")
    prompt: str | None = Field(None, description="What the text follows, a question for example.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    error: ErrorDetail


class Timings(BaseModel):
    """Seconds of the whole request."""

    queue: float
    encode: float = Field(description="Reading the images and encoding them; little for those seen recently.")
    generate: float


class Alternative(BaseModel):
    text: str
    score: float
    finish_reason: Literal["stop", "length"]


class TextResult(Alternative):
    image: int = Field(description="The place of the image in the request.")
    question: str | None = None
    num_tokens: int
    alternatives: list[Alternative] = Field(description="The other sequences asked for, best first.")


class TextReply(BaseModel):
    model: str
    results: list[TextResult]
    timings: Timings


class LabelResult(BaseModel):
    label: str
    index: int
    probability: float
    score: float


class ImageLabels(BaseModel):
    image: int
    labels: list[LabelResult] = Field(description="Most probable first.")


class ClassifyReply(BaseModel):
    model: str
    results: list[ImageLabels]
    timings: Timings


class TextScore(BaseModel):
    text: str
    score: float = Field(description="Log-probability, the end of the text included.")


class ImageScores(BaseModel):
    image: int
    texts: list[TextScore]


class ScoreReply(BaseModel):
    model: str
    results: list[ImageScores]
    timings: Timings


class Word(BaseModel):
    text: str
    attention: list[list[list[float]]] = Field(description="Frames, rows and columns of patches.")


class Attention(BaseModel):
    image: int
    text: str
    view: list[float] | None = Field(
        description="What the model sees of the image: left, top, right, bottom, from 0 to 1; null for clips."
    )
    words: list[Word]


class AttendReply(BaseModel):
    model: str
    results: list[Attention]
    timings: Timings


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gitfast"
    reads: Literal["images", "clips"]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(BaseModel):
    status: Literal["ok", "loading", "shutting down"]
