"""Our errors in OpenAI's form: one table from error to status and type."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from stream2llm.api.errors import (
    EventOrderError,
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    NotPermittedError,
    OverloadedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)


class Answered(NamedTuple):
    """The status of an error, and OpenAI's word for its kind."""

    status: HTTPStatus
    type: str


_BY_KIND: dict[type[Stream2LLMError], Answered] = {
    InvalidRequestError: Answered(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    EventOrderError: Answered(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    UnsupportedError: Answered(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    NotFoundError: Answered(HTTPStatus.NOT_FOUND, "invalid_request_error"),
    UnauthenticatedError: Answered(HTTPStatus.UNAUTHORIZED, "authentication_error"),
    NotPermittedError: Answered(HTTPStatus.FORBIDDEN, "permission_error"),
    OverloadedError: Answered(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error"),
    UnavailableError: Answered(HTTPStatus.SERVICE_UNAVAILABLE, "service_unavailable_error"),
    IdleTimeoutError: Answered(HTTPStatus.GATEWAY_TIMEOUT, "timeout_error"),
    InternalError: Answered(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error"),
}
# What is too much in itself, and not only now.
_TOO_LARGE = Answered(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "invalid_request_error")
_NEVER_FITS = Answered(HTTPStatus.BAD_REQUEST, "invalid_request_error")
# Codes of OpenAI that programs test; all others are our reasons in lower case.
_CODES = {
    "BAD_CREDENTIALS": "invalid_api_key",
    "NO_CREDENTIALS": "invalid_api_key",
    "CONTEXT_TOO_LONG": "context_length_exceeded",
    "UNKNOWN_MODEL": "model_not_found",
    "UNSUPPORTED": "unsupported_parameter",
}
# Before a field's name in gRPC, and nowhere in OpenAI's.
_PREFIX = re.compile(r"^(sampling|chat|open|control)\.")
# Parameters that have another name in OpenAI's API.
_PARAMS = {"stop_strings": "stop", "include_stop_string": "include_stop_str_in_output"}


def answered(error: Stream2LLMError) -> Answered:
    """The status and type of an error."""
    if isinstance(error, OverloadedError) and not error.retry_after_s:
        return _TOO_LARGE if error.reason == "MESSAGE_TOO_LARGE" else _NEVER_FITS
    kinds = (_BY_KIND[kind] for kind in type(error).__mro__ if kind in _BY_KIND)
    return next(kinds, _BY_KIND[InternalError])


def body_of(error: Stream2LLMError, names: Mapping[str, str] = {}) -> dict[str, Any]:
    """The JSON of an error; `names` has the parameters of a route that are called differently."""
    return {
        "error": {
            "message": error.message,
            "type": answered(error).type,
            "param": param_of(error, names),
            "code": _CODES.get(error.reason, error.reason.lower()),
        }
    }


def invalid_parameter(found: Mapping[str, Any], *, prefix: int = 0) -> InvalidRequestError:
    """Pydantic's first error as ours; `prefix` parts of its place are no parameters."""
    place = found["loc"][prefix:]
    field = str(place[0]) if place else None
    where = ".".join(map(str, place)) or "the body"
    return InvalidRequestError(f"{where}: {found['msg']}", field=field)


def param_of(error: Stream2LLMError, names: Mapping[str, str] = {}) -> str | None:
    """The parameter at fault, by the name that it has in the request."""
    if error.field is None:
        return None
    field = _PREFIX.sub("", error.field)
    first = re.match(r"\w+", field)
    name = first[0] if first else ""
    param, part = names.get(name, _PARAMS.get(name, name)), field[len(name) :]
    return param if _has_other_form(name, param, part) else param + part


def _has_other_form(name: str, param: str, part: str) -> bool:
    """Whether a router has got what the parameter says in a form that has other parts."""
    is_tag = part == ".structural_tag" and param != "structured_outputs"
    return name == "structured_output" and (is_tag or param == "tools")


def headers_of(error: Stream2LLMError) -> dict[str, str]:
    """The headers that belong to an error."""
    headers = {}
    if error.retry_after_s:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return headers
