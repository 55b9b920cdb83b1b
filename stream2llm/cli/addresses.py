"""Addresses of a running cluster, with the same variables and words for all commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stream2llm.api.address import host_and_port, is_resolved
from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import (
    InvalidRequestError,
    NotPermittedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
)
from stream2llm.api.tls import explained

DEFAULT_ROUTER = "127.0.0.1:50051"
DEFAULT_CONTROLLER = "127.0.0.1:8360"
ROUTER_VARIABLE = "STREAM2LLM_ADDRESS"
CONTROLLER_VARIABLE = "STREAM2LLM_CONTROLLER"
# Reasons of errors: none listens, or it hung up; and something else listens.
NO_ANSWER = "NO_ANSWER"
NOT_A_CONTROLLER = "NOT_A_CONTROLLER"

RouterOption = Annotated[
    str,
    typer.Option(
        "--address",
        "-a",
        help="HOST:PORT of a router; `stream2llm up` prints it.",
        envvar=ROUTER_VARIABLE,
    ),
]
ControllerOption = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of the controller; `stream2llm up` prints it.", envvar=CONTROLLER_VARIABLE
    ),
]


def several(addresses: list[str] | None) -> tuple[str, ...]:
    """Returns the routers of an option that may be repeated or have commas.

    A target that begins with the name of one of gRPC's resolvers has commas of its own.
    """
    given = addresses or [DEFAULT_ROUTER]
    split = ([each] if is_resolved(each) else each.split(",") for each in given)
    return tuple(address.strip() for each in split for address in each)


def no_answer(what: str, address: str, why: object) -> UnavailableError:
    """Returns the error for an address without an answer; `what` is "router" or "controller"."""
    return UnavailableError(
        f"no answer from a {what} at {address}: {explained(str(why))};"
        " is the cluster up (stream2llm up), and is this the address it printed?",
        reason=NO_ANSWER,
    )


# How gRPC's words begin where no connection came about.
_NEVER_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution")


@contextmanager
def naming_router(address: str) -> Iterator[None]:
    """Says more of a router that cannot be reached: whose address it is, and what to look at."""
    try:
        yield
    except UnavailableError as error:
        if not error.message.startswith(_NEVER_CONNECTED):
            raise
        raise no_answer("router", address, error.message) from error


@dataclass(frozen=True, slots=True)
class Controller:
    """A running controller, and how to connect with it."""

    # HOST:PORT.
    address: str
    security: ClientSecurity = PLAIN
    # For each answer.
    timeout_s: float = 30.0

    def ask(self, path: str, expects: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns its JSON, which has a list called `expects`; with `body` by PUT.

        Raises UnavailableError without an answer, for a refusal UnauthenticatedError,
        NotPermittedError or InvalidRequestError, and the last one for what is no address.
        """
        from http.client import BadStatusLine, HTTPException, RemoteDisconnected
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        from stream2llm.serving.http.own_http import open_url

        where = self.address
        host_and_port(where, "controller")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            method = "GET" if body is None else "PUT"
            url = f"{self.security.scheme}://{where}{path}"
            request = Request(url, data=data, method=method, headers=headers)
            with open_url(request, self.timeout_s, self.security) as answer:
                return _plain(answer.read(), where, expects)
        except HTTPError as error:
            with error:
                raise _refusal(error.code, error.read(), where) from None
        except RemoteDisconnected as error:  # a BadStatusLine, too
            raise no_answer("controller", where, error) from error
        except BadStatusLine as error:
            raise _not_a_controller(where, ", it does not speak HTTP: is it a router?") from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            raise no_answer("controller", where, getattr(error, "reason", error)) from error


# By HTTP status; others are the request's fault.
_REFUSALS: dict[int, type[Stream2LLMError]] = {
    401: UnauthenticatedError,
    403: NotPermittedError,
    503: UnavailableError,
}


def _plain(body: bytes, controller: str, expects: str) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict) or not isinstance(value.get(expects), list):
        raise _not_a_controller(controller)
    return value


def _refusal(code: int, body: bytes, controller: str) -> Exception:
    try:
        answer = json.loads(body)
        message, reason, field = answer["error"], answer["reason"], answer["field"]
    except (ValueError, KeyError, TypeError):
        return _not_a_controller(controller, f" (HTTP {code})")
    return _REFUSALS.get(code, InvalidRequestError)(message, reason=reason, field=field)


def _not_a_controller(controller: str, what: str = "") -> UnavailableError:
    message = f"the server at {controller} is not a controller{what}"
    return UnavailableError(message, reason=NOT_A_CONTROLLER)
