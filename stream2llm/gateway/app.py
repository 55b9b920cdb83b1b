"""The HTTP application: its routes, and errors in OpenAI's form."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from stream2llm import __version__
from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    NotFoundError,
    Stream2LLMError,
)
from stream2llm.api.events import Accepted
from stream2llm.gateway.answer_parsers import AnswerParsers
from stream2llm.gateway.answering import ClientLeftError, Events, respond, unsent
from stream2llm.gateway.calls import admitted, metadata_of
from stream2llm.gateway.chat import ChatForm
from stream2llm.gateway.completions import CompletionForm
from stream2llm.gateway.errors import invalid_parameter
from stream2llm.gateway.forms import Form, Opening
from stream2llm.gateway.middleware import error_response
from stream2llm.gateway.model_tokenizer import PromptTokenizer
from stream2llm.gateway.parsing import Parsing
from stream2llm.gateway.requests import AnswerRequest, ChatRequest, CompletionRequest
from stream2llm.gateway.response_requests import ResponsesRequest
from stream2llm.gateway.responses import ResponseForm
from stream2llm.gateway.routers import RouterClients
from stream2llm.security.guard import Guard
from stream2llm.security.principal import Scope
from stream2llm.serving.system.clock import Clock

R = TypeVar("R", bound=AnswerRequest)
_NOT_SERVED = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What all requests of a gateway use; `app.state.parts`."""

    clients: RouterClients
    parsers: AnswerParsers
    # None: without the model's tokenizer, an answer to a chat ends with its router.
    prompts: PromptTokenizer | None
    # Guards the page of metrics, and says whose the responses are that are kept here; routers
    # guard all other routes.
    guard: Guard
    registry: CollectorRegistry
    clock: Clock


def create_app(parts: GatewayParts, *more: APIRouter) -> FastAPI:
    """Returns the application; further routes come first, and may take over one of its own."""
    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(title="Stream2LLM", version=__version__, docs_url=None, redoc_url=None)
    app.state.parts = parts
    app.add_exception_handler(Stream2LLMError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(ClientLeftError, lambda _request, _error: unsent())
    app.add_exception_handler(Exception, _failed)
    for routes in (*more, _answers(parts), _models(parts), _operations(parts)):
        app.include_router(routes)
    return app


# -- answers ------------------------------------------------------------------------------


def _answers(parts: GatewayParts) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answer(parts, request, body, "chatcmpl-", ChatForm)

    @routes.post("/v1/completions")
    async def completion(body: CompletionRequest, request: Request) -> Response:
        return await answer(parts, request, body, "cmpl-", CompletionForm)

    @routes.post("/v1/responses")
    async def response(body: ResponsesRequest, request: Request) -> Response:
        return await answer(parts, request, body, "resp_", ResponseForm)

    return routes


async def answer(
    parts: GatewayParts,
    request: Request,
    body: R,
    prefix: str,
    make_form: Callable[[R, Opening], Form],
) -> Response:
    """The response to a request that is a whole prompt."""
    request.state.names = body.parameter_names()
    body.check_others()
    parsing = await parts.parsers.parsing(body)
    answer_id = f"{prefix}{uuid.uuid4().hex}"

    def form(accepted: Accepted) -> Form:
        created_s = int(parts.clock.wall_s())
        return make_form(body, Opening(answer_id, created_s, accepted.model, parsing))

    return await respond(
        request,
        _events(parts, request, body, parsing, answer_id),
        form,
        streams=bool(body.stream),
        # By this the routers' logs name the session, and OpenAI's clients the request.
        headers={"X-Request-Id": answer_id},
    )


async def _events(
    parts: GatewayParts,
    request: Request,
    body: AnswerRequest,
    parsing: Parsing,
    answer_id: str,
) -> Events:
    """The events of the answers; their session ends with the generator."""
    stream = parts.clients.present().generate(
        body.prompt_content(),
        sampling=parsing.sampling(body.sampling()),
        model=body.model or "",
        session_id=answer_id,
        **body.chat_options(),
        metadata=metadata_of(request, parts.guard),
        prompt_tokens=None if parts.prompts is None else parts.prompts.tokens_of(body),
    )
    async with stream:
        async for event in stream:
            yield event


# -- models -------------------------------------------------------------------------------


def _models(parts: GatewayParts) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [await _model(parts, request)]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        return await _model(parts, request, name)

    return routes


async def _model(parts: GatewayParts, request: Request, name: str = "") -> dict[str, Any]:
    client = parts.clients.present()
    info = await client.model_info(name, metadata=metadata_of(request, parts.guard))
    return {
        "id": info.model,
        "object": "model",
        "created": 0,  # not known
        "owned_by": "stream2llm",
        "max_model_len": info.max_model_len,
    }


# -- operations ---------------------------------------------------------------------------


def _operations(parts: GatewayParts) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        is_serving = parts.clients.is_serving
        status = "serving" if is_serving else "no routers, or no workers of both roles"
        return JSONResponse({"status": status}, 200 if is_serving else 503)

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        await admitted(request, parts.guard, Scope.READ)
        return Response(generate_latest(parts.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


# -- errors -------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Stream2LLMError)
    return error_response(error, getattr(request.state, "names", {}))


async def _invalid(request: Request, error: Exception) -> Response:
    """What is no JSON, or has a parameter of another type."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        invalid = InvalidRequestError(f"the body is no JSON: {first['ctx']['error']}")
        return await _refused(request, invalid)
    return await _refused(request, invalid_parameter(first, prefix=1))


async def _not_served(request: Request, error: Exception) -> Response:
    """No such route, no such method, or a body that the framework cannot read."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    response = error_response(
        NotFoundError(f"{what} is not served here")
        if error.status_code in _NOT_SERVED
        else InvalidRequestError(f"{what}: {error.detail}")
    )
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours, which the server logs."""
    return await _refused(request, InternalError("the gateway failed; its log says why"))
