"""Errors of requests, in the shape that clients of OpenAI's API read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.responses import JSONResponse

from gitfast.errors import GitfastError, ImageError

RETRY_AFTER_S = 1

_MAX_MESSAGE_CHARS = 2000  # a client's own names and texts come back in messages
_MAX_PARAM_CHARS = 200

_TYPES = {401: "authentication_error", 403: "permission_error", 500: "server_error", 503: "server_error"}


E = TypeVar("E", bound=Exception)


class ApiError(Exception):
    """An answer that is not 2xx.

    Attributes:
        status: The HTTP status.
        code: A word for programs, such as "invalid_image".
        param: The argument that is wrong, if it is one.
        headers: Sent with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "timeout_error" if self.status == 504 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def without_frames(error: E) -> E:
    """Drop the frames that raised an error.

    They hold the request's body and its job, which holds the error: such a cycle would be left to the garbage
    collector, which counts objects, and lets gigabytes of bodies gather.
    """
    error.__traceback__ = error.__context__ = None
    return error


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ApiError:
    """Make the error of an invalid request, with the reason in ``message``."""
    return ApiError(400, message[:_MAX_MESSAGE_CHARS], code=code, param=param and param[:_MAX_PARAM_CHARS])


def busy(message: str, code: str) -> ApiError:
    """Make the error of a server with no place for a request now; the client may try again."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_AFTER_S)})


def shutting_down() -> ApiError:
    """Make the error of a server that ends; its connections do, too."""
    error = busy("the server is shutting down", "shutting_down")
    error.headers["Connection"] = "close"
    return error


def timed_out(seconds: float) -> ApiError:
    return ApiError(504, f"the request took longer than {seconds:g} s", code="deadline_exceeded")


def internal_error() -> ApiError:
    """Make the error of a failure of the server itself, about which clients learn nothing."""
    return ApiError(500, "the server failed; its log says how", code="internal_error")


def of_status(status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> ApiError:
    """Make the error for the web framework's own refusals: an unknown path, a method."""
    phrase = HTTPStatus(status).phrase.lower() if status in HTTPStatus._value2member_map_ else "error"
    codes = {404: "not_found", 405: "method_not_allowed"}
    return ApiError(status, detail or phrase, code=codes.get(status, phrase.replace(" ", "_")), headers=headers)


def of_validation(error: ValidationError) -> ApiError:
    """Make the error for the first invalid argument of a request, by its name."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    where = where[:_MAX_PARAM_CHARS]
    if first["type"] == "extra_forbidden":
        return invalid(f"{where}: not supported here", where, code="unsupported_parameter")
    if first["type"] == "missing":
        return invalid(f"{where}: required", where, code="missing_parameter")
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{where}: {message}" if where else message, where or None)


def of_model(error: GitfastError | ValueError) -> ApiError:
    """Make the error for bad input that the model found: an unreadable image, an invalid option."""
    message, code = str(error), "invalid_value"
    if isinstance(error, ImageError):  # where there are several, "images[2]: ..." or "videos[2]: ..."
        message, code = message.replace("encoded bytes: ", "", 1), "invalid_image"
        message = re.sub(r"^(images|videos)(?=\[\d+\]: )|^", lambda found: "image" if found[1] else "image: ", message)
    param, colon, _ = message.partition(":")
    named = colon and re.fullmatch(r"\w+(\[\d+\])?", param)
    return invalid(message, param if named else None, code=code)
