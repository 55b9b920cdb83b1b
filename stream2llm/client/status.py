"""gRPC status to typed error: the inverse of the router's mapping.

A status of ours carries a google.rpc.Status with an ErrorInfo in its trailers.
A status without one was made by gRPC itself, on the way or in this process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stream2llm.errors import (
    ERROR_DOMAIN,
    ERRORS_BY_STATUS,
    InternalError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)

DETAILS_KEY = "grpc-status-details-bin"
# Statuses that no error of ours has, and the class that comes nearest.
_FOREIGN: dict[str, type[Stream2LLMError]] = {
    "UNKNOWN": InternalError,
    "DATA_LOSS": InternalError,
    "ABORTED": UnavailableError,
}


@dataclass(frozen=True, slots=True)
class _Details:
    """What the trailers say; None where they are silent."""

    reason: str | None = None
    field: str | None = None
    retry_after_s: float | None = None


def error_from_rpc(error: grpc.aio.AioRpcError) -> Stream2LLMError:
    """The typed error for a failed RPC."""
    code: grpc.StatusCode = error.code()
    message = error.details() or code.name
    details = _details(error.trailing_metadata() or ())
    if details.reason is None:
        return _transport_error(code, message)
    cls = ERRORS_BY_STATUS.get(code.name) or _FOREIGN.get(code.name, Stream2LLMError)
    typed = cls(message, reason=details.reason, field=details.field)
    typed.retry_after_s = details.retry_after_s
    return typed


def cancelled_error() -> Stream2LLMError:
    """For calls on a session whose RPC this process cancelled."""
    return Stream2LLMError("the session was cancelled", reason="CANCELLED")


def _transport_error(code: grpc.StatusCode, message: str) -> Stream2LLMError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        too_large = OverloadedError(message, reason="MESSAGE_TOO_LARGE")
        too_large.retry_after_s = None  # the same message can never pass
        return too_large
    cls = ERRORS_BY_STATUS.get(code.name) or _FOREIGN.get(code.name, Stream2LLMError)
    return cls(message, reason=code.name)


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> _Details:
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return _read(status_pb2.Status.FromString(value))
            except DecodeError:
                return _Details()
    return _Details()


def _read(status: status_pb2.Status) -> _Details:
    reason = field = retry_after_s = None
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            reason = info.reason
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return _Details(reason, field, retry_after_s)
