"""Addresses of a running cluster, with the same variables and words for all commands."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stream2llm.api.errors import InvalidRequestError, UnavailableError

DEFAULT_ROUTER = "127.0.0.1:50051"
DEFAULT_CONTROLLER = "127.0.0.1:8360"
ROUTER_VARIABLE = "STREAM2LLM_ADDRESS"
CONTROLLER_VARIABLE = "STREAM2LLM_CONTROLLER"

RouterOption = Annotated[
    str,
    typer.Option(
        "--address",
        "-a",
        help="HOST:PORT of a router; `stream2llm up` prints it.",
        envvar=ROUTER_VARIABLE,
    ),
]


def no_answer(what: str, address: str, why: object) -> UnavailableError:
    """Returns the error for an address without an answer; `what` is "router" or "controller"."""
    return UnavailableError(
        f"no answer from a {what} at {address}: {why};"
        " is the cluster up (stream2llm up), and is this the address it printed?",
        reason="NO_ANSWER",
    )


def ask_controller(
    controller: str,
    path: str,
    timeout_s: float,
    *,
    expects: str,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the controller's JSON, which has a list called `expects`; with `body` by PUT.

    Raises UnavailableError without an answer, InvalidRequestError for a refusal.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    from stream2llm.serving.own_http import open_url

    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        method = "GET" if body is None else "PUT"
        request = Request(f"http://{controller}{path}", data=data, method=method, headers=headers)
        with open_url(request, timeout_s) as answer:
            return _plain(answer.read(), controller, expects)
    except HTTPError as error:
        with error:
            raise _refusal(error.code, error.read(), controller) from None
    except (URLError, OSError, HTTPException, ValueError) as error:
        raise no_answer("controller", controller, getattr(error, "reason", error)) from error


def _plain(body: bytes, controller: str, expects: str) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict) or not isinstance(value.get(expects), list):
        raise UnavailableError(f"the server at {controller} is not a controller")
    return value


def _refusal(code: int, body: bytes, controller: str) -> Exception:
    try:
        answer = json.loads(body)
        message, reason, field = answer["error"], answer["reason"], answer["field"]
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"the server at {controller} is not a controller (HTTP {code})")
    return InvalidRequestError(message, reason=reason, field=field)
