"""The OpenAPI document: bodies from pydantic, replies from msgspec, put together. FastAPI only knows the
paths.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shoal_engine.server import protocol, replies

_BODIES = (protocol.ChatBody, protocol.CompletionBody, protocol.TokenizeBody, protocol.DetokenizeBody)
_REPLIES = (
    replies.ChatReply,
    replies.ChatChunk,
    replies.CompletionReply,
    replies.ModelList,
    replies.ModelCard,
    replies.TokenizeReply,
    replies.DetokenizeReply,
    replies.HealthReply,
    replies.ReadyReply,
    replies.VersionReply,
    replies.ErrorReply,
)
_PATH = "#/components/schemas/{name}"


def documents(
    body: type[BaseModel] | None, reply: type[Any], chunk: type[Any] | None = None
) -> dict[str, Any]:
    """Arguments of a route's decorator that say what goes in and out; `chunk`: the data of each server-sent
    event.
    """
    content: dict[str, Any] = {"application/json": {"schema": _ref(reply)}}
    if chunk is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event-data": _ref(chunk)}
    error = {
        "description": "An error in OpenAI's shape.",
        "content": {"application/json": {"schema": _ref(replies.ErrorReply)}},
    }
    extra: dict[str, Any] = {
        "responses": {"200": {"description": "Success.", "content": content}, "4XX": error}
    }
    if reply in (replies.HealthReply, replies.ReadyReply):
        extra["responses"]["503"] = {
            "description": "Not so.",
            "content": {"application/json": {"schema": _ref(reply)}},
        }
    else:
        extra["responses"]["5XX"] = error
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return {"openapi_extra": extra}


def schema(api: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        for operation in (each for path in document["paths"].values() for each in path.values()):
            operation["responses"].pop("422", None)  # FastAPI's own; ours are 400
        _, bodies = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template=_PATH.replace("name", "model")
        )
        _, answers = msgspec.json.schema_components(_REPLIES, ref_template=_PATH)
        document.setdefault("components", {})["schemas"] = {**bodies["$defs"], **answers}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        api.openapi_schema = document
    return api.openapi_schema


def _ref(model: type[Any]) -> dict[str, str]:
    return {"$ref": _PATH.format(name=model.__name__)}
