"""The routes. Each one is glue: read the body, hand it over, put the result into an envelope. No decisions."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from shoal_engine.errors import EngineError, InvalidRequest
from shoal_engine.server import health, openapi, replies
from shoal_engine.server.admission import check_model, template_switches
from shoal_engine.server.answer import Answer
from shoal_engine.server.body import read_body
from shoal_engine.server.chat import admit_chat
from shoal_engine.server.completions import admit_completion
from shoal_engine.server.envelope import Envelope, Keys
from shoal_engine.server.exposition import Exposition
from shoal_engine.server.fault_replies import internal_error, of_status, response_of
from shoal_engine.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from shoal_engine.server.sampling import check_vocabulary
from shoal_engine.server.service import Service
from shoal_engine.server.terms import read_generation

ABOUT = """OpenAI's API for one model, with vLLM's extensions. Fields that nobody here knows are ignored; fields
that are known and not supported yet are refused by name, because without them the answer would be another."""


def build_app(service: Service, keys: Keys) -> ASGIApp:
    api = FastAPI(
        title="Shoal engine", version=service.version, description=ABOUT, docs_url=None, redoc_url=None
    )
    api.router.redirect_slashes = False
    _add_generation(api, service)
    _add_models(api, service)
    _add_tokens(api, service)
    _add_state(api, service)
    _add_fault_handlers(api)
    api.openapi = lambda: openapi.schema(api)  # type: ignore[method-assign]
    return Envelope(api, keys, service.metrics.on_response)


def _add_generation(api: FastAPI, service: Service) -> None:
    @api.post("/v1/chat/completions", **openapi.documents(ChatBody, replies.ChatReply, replies.ChatChunk))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        arrived_s = time.monotonic()
        body, terms = await read_generation(request, ChatBody, service.limits)
        return Answer(service, arrived_s, lambda: admit_chat(service, body, terms), terms.router.timeout_s)

    @api.post(
        "/v1/completions",
        **openapi.documents(CompletionBody, replies.CompletionReply, replies.CompletionReply),
    )
    async def completions(request: Request) -> Response:
        """Continue a text."""
        arrived_s = time.monotonic()
        body, terms = await read_generation(request, CompletionBody, service.limits)
        return Answer(
            service, arrived_s, lambda: admit_completion(service, body, terms), terms.router.timeout_s
        )


def _add_models(api: FastAPI, service: Service) -> None:
    def card() -> replies.ModelCard:
        _, ready = service.open()
        return replies.ModelCard(
            id=service.model, created=service.created, root=service.root, max_model_len=ready.max_model_len
        )

    @api.get("/v1/models", **openapi.documents(None, replies.ModelList))
    async def models() -> Response:
        """The served model."""
        return _json(replies.ModelList(data=[card()]))

    @api.get("/v1/models/{model:path}", **openapi.documents(None, replies.ModelCard))
    async def model(model: str) -> Response:
        """One model by name."""
        check_model(model, service.model)
        return _json(card())


def _add_tokens(api: FastAPI, service: Service) -> None:
    @api.post("/tokenize", **openapi.documents(TokenizeBody, replies.TokenizeReply))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text or a conversation."""
        body = await read_body(request, TokenizeBody, service.limits)
        prompts, ready = service.open()
        check_model(body.model, service.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("Give either prompt or messages.", param="prompt")
        if body.messages is not None:
            ids = await prompts.of_chat(body.messages, template_switches(body), max_tokens=None)
        else:
            special = body.add_special_tokens is not False
            ids = await prompts.of_text(body.prompt or "", special=special, max_tokens=None)
        texts = await prompts.texts_of(ids) if body.return_token_strs else None
        return _json(
            replies.TokenizeReply(
                count=len(ids), max_model_len=ready.max_model_len, tokens=ids, token_strs=texts
            )
        )

    @api.post("/detokenize", **openapi.documents(DetokenizeBody, replies.DetokenizeReply))
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        body = await read_body(request, DetokenizeBody, service.limits)
        prompts, ready = service.open()
        check_model(body.model, service.model)
        check_vocabulary(body.tokens, ready.vocab_size, "tokens")
        return _json(replies.DetokenizeReply(await prompts.text_of(body.tokens)))


def _add_state(api: FastAPI, service: Service) -> None:
    @api.get("/health", **openapi.documents(None, replies.HealthReply))
    async def alive() -> Response:
        """Whether the engine does what it should: load, step, or wait for work. 503: restart it."""
        reply, status = health.health(service, time.monotonic())
        return _json(reply, status)

    @api.get("/ready", **openapi.documents(None, replies.ReadyReply))
    async def ready() -> Response:
        """Whether requests are welcome; until then how far loading has come."""
        reply, status = health.readiness(service)
        return _json(reply, status)

    exposition = Exposition(service.metrics, service.model)

    @api.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        service.metrics.stalled_s = service.client.stalled_s()
        service.metrics.prefix_tags = len(service.client.tags.held)
        body, content_type = exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    @api.get("/version", **openapi.documents(None, replies.VersionReply))
    async def version() -> Response:
        """Shoal's version."""
        return _json(replies.VersionReply(service.version))


def _add_fault_handlers(api: FastAPI) -> None:
    @api.exception_handler(EngineError)
    async def refused(request: Request, error: EngineError) -> Response:
        return response_of(error)

    @api.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        return of_status(error.status_code, dict(error.headers or {}))

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return response_of(InvalidRequest("The request's path or query is not as it should be."))

    @api.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody is there to read it; it counts in the metrics

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return response_of(internal_error())


def _json(reply: Any, status: int = 200) -> Response:
    return Response(replies.encode(reply), status, media_type="application/json")
