"""Domain errors as gRPC statuses: the one place of the servers that maps them.

A status carries google.rpc details in its `grpc-status-details-bin` trailer:
ErrorInfo always, BadRequest when a field is at fault, RetryInfo when trying
again can help. `client/status.py` is the inverse.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from stream2llm.errors import ERROR_DOMAIN, Stream2LLMError

_DETAILS_KEY = "grpc-status-details-bin"


class RpcStatus(NamedTuple):
    """What `ServicerContext.abort_with_status` wants (structurally a grpc.Status)."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_status(error: Stream2LLMError) -> RpcStatus:
    """The status that ends an RPC with this error."""
    code = grpc.StatusCode[error.status_name]
    payload = status_pb2.Status(code=code.value[0], message=error.message)
    for detail in _details(error):
        payload.details.append(detail)
    return RpcStatus(code, error.message, ((_DETAILS_KEY, payload.SerializeToString()),))


async def abort(context: grpc.aio.ServicerContext, error: Stream2LLMError) -> NoReturn:
    """Ends the RPC of `context` with this error."""
    await context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status returned")


def _details(error: Stream2LLMError) -> list[any_pb2.Any]:
    messages: list[object] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return [_packed(message) for message in messages]


def _packed(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
