"""What a failed RPC to a worker means; `stream2llm/api/rpc_status.py` does the rest."""

from __future__ import annotations

from typing import Any

import grpc

from stream2llm.api.errors import (
    InternalError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.rpc_status import from_rpc_error

WORKER_LOST = "WORKER_LOST"

# What gRPC itself says when the other side is gone.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})
# And when we have cancelled the RPC ourselves.
_CANCELLED_HERE = "Locally cancelled by application!"
# How gRPC begins when it had no connection and got none: nothing of the RPC left this process.
# (It retries by itself what a connection that ends has surely not taken.)
_NOT_CONNECTED = "failed to connect to all addresses"
# How grpc.aio reports an exception that a handler let through.
_HANDLER_RAISED = "Unexpected <class"


class NeverArrivedError(UnavailableError):
    """The worker could not be reached, so it knows nothing of the RPC: another one may take it."""


def worker_error(error: Any, worker_id: str) -> Stream2LLMError:
    """The domain error for a failed RPC to a worker.

    A worker's own errors pass through. A status that gRPC made means that the
    worker is gone, or that one of us has a bug.
    """
    ours = from_rpc_error(error)
    if ours is not None:
        return ours
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_CONNECTED):
        return NeverArrivedError(f"worker {worker_id} was lost: {details}", reason=WORKER_LOST)
    if is_lost(code, details):
        return UnavailableError(f"worker {worker_id} was lost: {details}", reason=WORKER_LOST)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(f"worker {worker_id} refused: {details}")
    return InternalError(f"worker {worker_id} failed: {code.name}: {details}")


def was_cancelled_here(code: grpc.StatusCode, details: str) -> bool:
    """Whether this side ended the RPC, which says nothing about the other one."""
    return code is grpc.StatusCode.CANCELLED and details == _CANCELLED_HERE


def is_lost(code: grpc.StatusCode, details: str) -> bool:
    """Whether a status that is not ours means that the other side is gone."""
    if was_cancelled_here(code, details):
        return False
    if code is grpc.StatusCode.INTERNAL:  # a connection that broke in mid-frame
        return "RST_STREAM" in details
    return code in _LOST and not details.startswith(_HANDLER_RAISED)
