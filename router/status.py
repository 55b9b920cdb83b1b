"""Translates failed RPCs to workers; `stream2llm/api/rpc_status.py` has the general part."""

from __future__ import annotations

from typing import Any

import grpc

from stream2llm.api.errors import (
    InternalError,
    OverloadedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
)
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.serving.mux.statuses import CANCELLED_HERE, NOT_SENT

WORKER_LOST = "WORKER_LOST"

# gRPC's own codes for a lost peer.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})
# The beginnings of the messages when the RPC never left this process: gRPC's when it could not
# connect, and that of a call whose stream broke before it was sent.
_NOT_SENT = ("failed to connect to all addresses", NOT_SENT)
# grpc.aio's message for an exception in a handler.
_HANDLER_RAISED = "Unexpected <class"


class NeverArrivedError(UnavailableError):
    """The worker could not be reached, so the RPC had no effect: another one may take it."""


def worker_error(error: Any, worker_id: str) -> Stream2LLMError:
    """Returns the domain error for a failed RPC to a worker.

    A worker's own errors pass through. A status made by gRPC means that the worker is
    lost, or that there is a bug on either side. One that refuses this router's token is of
    another cluster, at the address of a worker that is gone: lost, and not the client's fault.
    """
    ours = from_rpc_error(error)
    if isinstance(ours, UnauthenticatedError):
        return NeverArrivedError(f"worker {worker_id} was lost: {ours.message}", reason=WORKER_LOST)
    if ours is not None:
        return ours
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_SENT):
        return NeverArrivedError(f"worker {worker_id} was lost: {details}", reason=WORKER_LOST)
    if is_lost(code, details):
        return UnavailableError(f"worker {worker_id} was lost: {details}", reason=WORKER_LOST)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(f"worker {worker_id} refused: {details}")
    return InternalError(f"worker {worker_id} failed: {code.name}: {details}")


def is_lost(code: grpc.StatusCode, details: str) -> bool:
    """Whether a status made by gRPC means that the peer is lost."""
    if details == CANCELLED_HERE:  # which says nothing about the peer
        return False
    if code is grpc.StatusCode.INTERNAL:  # a connection that broke mid-frame
        return "RST_STREAM" in details
    return code in _LOST and not details.startswith(_HANDLER_RAISED)
