"""Turns failed RPCs into typed errors; `stream2llm/api/rpc_status.py` reads the details.

A status without our details was made by gRPC itself, in the network or in this process.
"""

from __future__ import annotations

import grpc

from stream2llm.api.errors import (
    ERRORS_BY_STATUS,
    IdleTimeoutError,
    InternalError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.tls import explained

# Statuses that none of our errors has, and the nearest class.
_FOREIGN: dict[str, type[Stream2LLMError]] = {
    "UNKNOWN": InternalError,
    "DATA_LOSS": InternalError,
    "ABORTED": UnavailableError,
}


def error_from_rpc(
    error: grpc.aio.AioRpcError,
    timeout_s: float | None = None,
    waited_for: str = "the call did not end",
) -> Stream2LLMError:
    """Returns the typed error for a failed RPC.

    `timeout_s` is the caller's; when that has passed, the error says what had not
    happened by then (`waited_for`), where gRPC says "Stream removed".
    """
    ours = from_rpc_error(error)
    if ours is not None:
        return ours
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        return out_of_time(timeout_s, waited_for)
    return _transport_error(code, explained(error.details() or code.name))


def out_of_time(timeout_s: float, waited_for: str) -> IdleTimeoutError:
    """Returns the error for what had not happened in time."""
    return IdleTimeoutError(
        f"{waited_for} within the client's timeout_s of {timeout_s:g} s",
        reason="DEADLINE_EXCEEDED",
    )


def cancelled_error() -> Stream2LLMError:
    """Returns the error for calls on a session whose RPC this process cancelled."""
    return Stream2LLMError("the session was cancelled", reason="CANCELLED")


def _transport_error(code: grpc.StatusCode, message: str) -> Stream2LLMError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        too_large = OverloadedError(message, reason="MESSAGE_TOO_LARGE")
        too_large.retry_after_s = None  # the same message can never pass
        return too_large
    cls = ERRORS_BY_STATUS.get(code.name) or _FOREIGN.get(code.name, Stream2LLMError)
    return cls(message, reason=code.name)
