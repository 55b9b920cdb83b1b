"""gRPC's metadata and statuses as frames have them, and those that a stream gives its calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from stream2llm.api.v1.worker_pb2 import CallEnd, MetadataEntry

# gRPC's message, and ours, when this side has cancelled a call.
CANCELLED_HERE = "Locally cancelled by application!"
# The beginning of our message for a call whose opening was never handed to gRPC.
NOT_SENT = "the connection broke before the call was sent"
# Codes that gRPC gives the calls of a connection that is lost.
_BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
# gRPC's own limit of metadata, and what is left of a message that is too long.
_MOST_STATUS_BYTES = 8192
_MOST_DETAILS_CHARS = 1000
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def status(
    code: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata | None = None
) -> grpc.aio.AioRpcError:
    """A final status, as an error also where it is OK."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details)


def cancelled_here() -> grpc.aio.AioRpcError:
    """That of a call that this side has cancelled."""
    return status(grpc.StatusCode.CANCELLED, CANCELLED_HERE)


def not_sent(broken: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """That of a call which had no effect, because its stream broke first."""
    if broken.code() not in _BROKEN or broken.details() == CANCELLED_HERE:
        return broken
    return status(grpc.StatusCode.UNAVAILABLE, f"{NOT_SENT}: {broken.details()}")


def end_of(
    code: grpc.StatusCode, details: str = "", trailing: Iterable[Any] | None = None
) -> CallEnd:
    """A status as a frame has it; one too long for gRPC is cut, and loses its metadata."""
    end = CallEnd(code=code.value[0], details=details, trailing_metadata=entries(trailing))
    if end.ByteSize() > _MOST_STATUS_BYTES:
        return CallEnd(code=code.value[0], details=f"{details[:_MOST_DETAILS_CHARS]}...")
    return end


def status_of(end: CallEnd) -> grpc.aio.AioRpcError:
    """The status in a frame; UNKNOWN for a number that gRPC does not have."""
    code = _CODES.get(end.code, grpc.StatusCode.UNKNOWN)
    return status(code, end.details, grpc.aio.Metadata(*pairs(end.trailing_metadata)))


def entries(metadata: Iterable[Any] | None) -> list[MetadataEntry]:
    """Metadata as a frame has it."""
    return [MetadataEntry(key=key, value=_as_bytes(value)) for key, value in metadata or ()]


def pairs(metadata: Iterable[MetadataEntry]) -> list[tuple[str, str | bytes]]:
    """The metadata of a frame."""
    return [(each.key, _as_value(each)) for each in metadata]


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _as_value(entry: MetadataEntry) -> str | bytes:
    if entry.key.endswith("-bin"):
        return bytes(entry.value)
    return entry.value.decode("utf-8", "replace")
