"""Bodies of requests, within limits of bytes and time, and the images and arguments in them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Receive, Scope

from gitfast.serve.errors import ApiError, busy, invalid, of_validation, shutting_down
from gitfast.serve.settings import Settings

FILE_FIELDS = ("image", "clip")
RAW_TYPES = ("image/", "video/", "application/octet-stream")

_MAX_FIELDS = 4096  # besides files
_MAX_JSON_VALUES = 20_000  # parsing takes time and memory by the value, up to 300 bytes for each byte of "[],"
# The characters of base64 that are escaped in URIs. ``unquote`` takes a second and 80 MB for each 2 MB of escapes.
_ESCAPED = {"%2B": "+", "%2b": "+", "%2F": "/", "%2f": "/", "%3D": "=", "%3d": "="}
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)

Options = TypeVar("Options", bound=BaseModel)


class ClientLeft(Exception):
    """A connection that ended before its request did: nobody is there to be answered."""


class BodyReader:
    """A reader of whole bodies that counts the bytes of all that are held."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held = 0
        self._arriving: set[asyncio.Timeout] = set()
        self._stopped = False

    def stop(self) -> None:
        """End the requests whose body has not arrived: none of them would be admitted any more."""
        self._stopped = True
        for arriving in self._arriving:
            if not arriving.expired():
                arriving.reschedule(0)

    def release(self, size: int) -> None:
        self._held -= size

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body. Its bytes count as held until ``release``.

        Raises:
            ApiError: 413 for too large a body, 408 for too slow a one, 503 where too much is held already or the server
                ends meanwhile.
            ClientLeft: the body was cut.
        """
        limit = self._settings.max_body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        body = bytearray()
        arriving = asyncio.timeout(self._settings.body_timeout)
        try:
            async with arriving:
                self._arriving.add(arriving)
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > limit:
                        raise _too_large(limit)
                    if self._held > self._settings.max_buffered_bytes:
                        raise busy("the server holds too many requests; try again", "out_of_memory")
        except TimeoutError:
            self._held -= len(body)
            if self._stopped:
                raise shutting_down() from None
            slow = f"the body did not arrive within {self._settings.body_timeout:g} s"
            raise ApiError(408, slow, code="body_timeout", headers={"Connection": "close"}) from None
        except BaseException:
            self._held -= len(body)
            raise
        finally:
            self._arriving.discard(arriving)
        return bytes(body)


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit} bytes"
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


@dataclass
class Inputs:
    """The images or clips of a request, encoded, and its arguments as texts, each with all its values."""

    files: list[bytes] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)

    def options(self, kind: type[Options]) -> Options:
        """Parse the arguments as ``kind``. Raises ``ApiError``: one is unknown, missing or invalid."""
        values: dict[str, object] = {}
        for name, texts in self.fields.items():
            known = kind.model_fields.get(name)
            many = known is not None and getattr(known.annotation, "__origin__", None) is list
            if not many and len(texts) > 1:
                raise invalid(f"{name}: expected once, got {len(texts)} times", name)
            values[name] = texts if many else texts[0]
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            raise of_validation(error) from None


async def read_inputs(request: Request, settings: Settings) -> Inputs:
    """Read the images and arguments of a raw or multipart request; arguments of the query string count as well.

    Raises:
        ApiError: 400 for a body that is neither whole nor within limits, 415 for another kind of body.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    inputs = Inputs()
    for name, value in request.query_params.multi_items():
        inputs.fields.setdefault(name, []).append(value)
    body = await request.body()
    if kind == "multipart/form-data":
        _read_multipart(body, content_type, inputs, settings)
    elif kind.startswith(RAW_TYPES):
        inputs.files.append(body)
    else:
        expected = "an image or clip as body (image/..., video/..., application/octet-stream), or multipart/form-data"
        raise ApiError(415, f"expected {expected}; got {kind or 'no content type'}", code="unsupported_media_type")
    check_files(inputs.files, settings)
    check_texts([text for texts in inputs.fields.values() for text in texts], settings)
    return inputs


def check_json(body: bytes) -> None:
    """Raise ``ApiError`` where a JSON body holds too many values to be parsed between other requests."""
    values = sum(map(body.count, (b",", b"[", b"{")))
    if values > _MAX_JSON_VALUES:
        raise invalid(f"the body holds more than {_MAX_JSON_VALUES} values", code="invalid_json")


def check_texts(texts: Iterable[str], settings: Settings) -> None:
    """Raise ``ApiError`` where texts would take long to be split into tokens, which no deadline interrupts."""
    total = sum(map(len, texts))
    if total > settings.max_text_chars:
        raise invalid(f"at most {settings.max_text_chars} characters of text in one request, got {total}")


def check_files(files: Iterable[bytes], settings: Settings) -> None:
    """Raise ``ApiError`` where there are no files, too many, or one that is empty."""
    files = list(files)
    if not files:
        raise invalid("image: expected at least one", "image", code="missing_parameter")
    if len(files) > settings.max_images:
        raise invalid(f"image: at most {settings.max_images} in one request, got {len(files)}", "image")
    for i, file in enumerate(files):
        if not file:
            raise invalid(f"image[{i}]: expected an image, got no bytes", f"image[{i}]", code="invalid_image")


def decode_data_uri(uri: str, name: str) -> bytes:
    """Decode the bytes of a base64 data URI. Raises ``ApiError``."""
    head = _DATA_URI.match(uri[:256])
    if head is None:
        raise invalid(f"{name}: expected data:image/...;base64,...", name, code="invalid_image")
    kind = (head["type"] or "application/octet-stream").lower()
    if not kind.startswith(RAW_TYPES):
        raise invalid(f"{name}: expected an image or clip, got {kind}", name, code="invalid_image")
    data = uri[head.end() :]
    if "%" in data:
        for escaped, char in _ESCAPED.items():
            data = data.replace(escaped, char)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{name}: its base64 is damaged", name, code="invalid_image") from None


def _read_multipart(body: bytes, content_type: str, inputs: Inputs, settings: Settings) -> None:
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise invalid("the multipart body has no boundary", code="invalid_multipart")
    form = _Form(inputs, settings)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise invalid("the multipart body is damaged", code="invalid_multipart") from None
    if not form.ended:
        raise invalid("the multipart body is cut", code="invalid_multipart")


class _Form:
    """The parts of a multipart body, collected as the parser finds them."""

    def __init__(self, inputs: Inputs, settings: Settings) -> None:
        self.ended = False
        self._inputs, self._settings = inputs, settings
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._data = bytearray()
        self._num_fields = 0

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data = {}, bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise invalid("a part of the multipart body has no name", code="invalid_multipart")
        name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options or name in FILE_FIELDS:
            if name not in FILE_FIELDS:
                raise invalid(f"{name}: not supported here as a file", name, code="unsupported_parameter")
            if len(self._inputs.files) >= self._settings.max_images:
                raise invalid(f"{name}: at most {self._settings.max_images} in one request", name)
            self._inputs.files.append(bytes(self._data))
            return
        self._num_fields += 1
        if self._num_fields > _MAX_FIELDS:
            raise invalid(f"at most {_MAX_FIELDS} fields in one request")
        try:
            text = self._data.decode()
        except UnicodeDecodeError:
            raise invalid(f"{name}: expected UTF-8", name) from None
        self._inputs.fields.setdefault(name, []).append(text)

    def _end(self) -> None:
        self.ended = True
