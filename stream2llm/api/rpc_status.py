"""Domain errors to gRPC statuses and back.

The rich part travels as google.rpc.Status in the trailer that gRPC names
`grpc-status-details-bin`: an ErrorInfo always, field violations and a RetryInfo
where they apply. Servers raise domain errors anywhere below; their servicers
and their callers translate here and nowhere else.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from stream2llm.api.errors import ERROR_DOMAIN, ERRORS_BY_STATUS, Stream2LLMError


def to_status(error: Stream2LLMError) -> grpc.Status:
    """The gRPC status of a domain error, details included, for `context.abort_with_status`."""
    code = grpc.StatusCode[error.status_name].value[0]
    rich = status_pb2.Status(code=code, message=error.message)
    for detail in _details(error):
        rich.details.add().Pack(detail)
    return rpc_status.to_status(rich)


async def abort(context: Any, error: Stream2LLMError) -> NoReturn:
    """Ends the RPC of `context` with the error's status."""
    await context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status returned")


def _details(error: Stream2LLMError) -> list[Any]:
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def from_rpc_error(error: Any) -> Stream2LLMError | None:
    """The domain error a server of ours sent; None when the status is not ours.

    Takes a grpc.aio.AioRpcError or anything else with its four methods.
    """
    try:
        rich = rpc_status.from_call(error)
    except (DecodeError, ValueError):  # unreadable, or its code is not the status's: not by us
        return None
    info = rich and _unpack(rich, error_details_pb2.ErrorInfo)
    if info is None or info.domain != ERROR_DOMAIN:
        return None
    kind = ERRORS_BY_STATUS.get(error.code().name)
    if kind is None:
        return None
    ours = kind(error.details() or "", reason=info.reason or None, field=_field_of(rich))
    ours.retry_after_s = _retry_after_s(rich)  # what it says, not the class's default
    return ours


def _unpack(rich: Any, message_type: Any) -> Any:
    for detail in rich.details:
        if detail.Is(message_type.DESCRIPTOR):
            message = message_type()
            detail.Unpack(message)
            return message
    return None


def _field_of(rich: Any) -> str | None:
    bad_request = _unpack(rich, error_details_pb2.BadRequest)
    if bad_request is None or not bad_request.field_violations:
        return None
    return str(bad_request.field_violations[0].field)


def _retry_after_s(rich: Any) -> float | None:
    retry = _unpack(rich, error_details_pb2.RetryInfo)
    return None if retry is None else float(retry.retry_delay.ToNanoseconds() / 1e9)
