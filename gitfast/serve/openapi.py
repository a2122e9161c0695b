"""The OpenAPI document: bodies that the web framework does not read by itself, and the errors of every route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gitfast.serve.schemas import ChatRequest, ErrorReply

_REF = "#/components/schemas/{model}"
_MEANINGS = {
    400: "The request cannot be: a bad image, or an argument that is unknown or wrong.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    503: "The server is full, loading or shutting down; see Retry-After.",
    504: "The request took too long.",
}
_BINARY = {"type": "string", "format": "binary"}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors that a route may answer besides its reply."""
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in statuses}


def json_body(model: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}
    return {"requestBody": {"required": True, "content": content}}


def chat_responses() -> dict[int | str, dict[str, Any]]:
    """Describe a completion, or chunks of one as events; their shape is OpenAI's."""
    reply = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"content": reply}, **errors(400, 401, 404, 408, 413, 415, 503, 504)}


def inputs_body(options: type[BaseModel]) -> dict[str, Any]:
    """Describe an image as the body and arguments in the query string, or both in a form."""
    schema = options.model_json_schema()
    properties: dict[str, Any] = schema["properties"]
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,  # a form may have it
            "schema": {key: value for key, value in kind.items() if key != "description"},
            "description": kind.get("description", ""),
        }
        for name, kind in properties.items()
    ]
    images = {"type": "array", "items": _BINARY, "minItems": 1}
    form = {
        "type": "object",
        "properties": {"image": images, **properties},
        "required": ["image"],
        "additionalProperties": False,
    }
    return {
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": _BINARY}},
        },
    }


def schema_of(app: FastAPI) -> dict[str, Any]:
    """Return the document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary="Captions, answers and labels of images and clips.",
            routes=app.routes,
        )
        _, definitions = models_json_schema([(ChatRequest, "validation")], ref_template=_REF)
        schema["components"]["schemas"] |= definitions["$defs"]
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
