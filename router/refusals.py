"""Counts errors that clients get by reason, and logs refusals before admission.

An admitted session logs its own end, but a request refused earlier has no session. A
client in a retry loop could write thousands of lines a second here, so they are bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from router.metrics import RouterMetrics
from stream2llm.api.errors import Stream2LLMError
from stream2llm.security.line_budget import LineBudget
from stream2llm.security.principal import caller
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.system.clock import Clock

_logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """Every reason that a router gives, its own and those of workers that it passes on.

    A closed set, as labels must be; `OTHER` stands for reasons of newer workers.
    """

    BAD_CHAT = "BAD_CHAT"
    BAD_DOCUMENT_ID = "BAD_DOCUMENT_ID"
    BAD_HANDOVER = "BAD_HANDOVER"
    BAD_JSON = "BAD_JSON"
    BAD_ORDERING = "BAD_ORDERING"
    BAD_RANKING_NOTE = "BAD_RANKING_NOTE"
    BAD_RESUMED = "BAD_RESUMED"
    BAD_SAMPLING = "BAD_SAMPLING"
    BAD_STRUCTURED_OUTPUT = "BAD_STRUCTURED_OUTPUT"
    BAD_TEXT = "BAD_TEXT"
    BAD_TOKEN_ID = "BAD_TOKEN_ID"
    BAD_TTFT_SLO = "BAD_TTFT_SLO"
    CANCELLED = "CANCELLED"
    CLOSED_WITHOUT_SEAL = "CLOSED_WITHOUT_SEAL"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    DOCUMENT_WITHOUT_CONTENT = "DOCUMENT_WITHOUT_CONTENT"
    DEADLINE_OUT_OF_REACH = "DEADLINE_OUT_OF_REACH"
    DRAINING = "DRAINING"
    DUPLICATE_DOCUMENT = "DUPLICATE_DOCUMENT"
    EMPTY_CONTEXT = "EMPTY_CONTEXT"
    EVENT_OUT_OF_ORDER = "EVENT_OUT_OF_ORDER"
    FULL = "FULL"
    FIRST_EVENT_NOT_OPEN = "FIRST_EVENT_NOT_OPEN"
    INPUT_IDLE = "INPUT_IDLE"
    INTERNAL = "INTERNAL"
    INVALID_REQUEST = "INVALID_REQUEST"
    KV_LOST = "KV_LOST"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    NO_CHAT_TEMPLATE = "NO_CHAT_TEMPLATE"
    NO_DECODE_WORKER = "NO_DECODE_WORKER"
    NO_EVENT = "NO_EVENT"
    NO_MESSAGE = "NO_MESSAGE"
    NO_PREFILL_WORKER = "NO_PREFILL_WORKER"
    NO_PROMPT = "NO_PROMPT"
    NOT_ENCODABLE = "NOT_ENCODABLE"
    NOT_FOUND = "NOT_FOUND"
    NOT_IN_TEMPLATE = "NOT_IN_TEMPLATE"
    NOT_OPENED = "NOT_OPENED"
    OVERLOADED = "OVERLOADED"
    QUOTA_HELD_TOKENS = "QUOTA_HELD_TOKENS"
    QUOTA_OPEN_SESSIONS = "QUOTA_OPEN_SESSIONS"
    QUOTA_TOKENS_PER_MINUTE = "QUOTA_TOKENS_PER_MINUTE"
    SESSION_DOCUMENTS_EXCEEDED = "SESSION_DOCUMENTS_EXCEEDED"
    SESSION_TOKENS_EXCEEDED = "SESSION_TOKENS_EXCEEDED"
    SESSION_TOO_LONG = "SESSION_TOO_LONG"
    SILENT = "SILENT"
    SUFFIX_WITH_CHAT = "SUFFIX_WITH_CHAT"
    TOKENS_DIFFER = "TOKENS_DIFFER"
    TOO_MANY_DOCUMENTS = "TOO_MANY_DOCUMENTS"
    TOO_MANY_SESSIONS = "TOO_MANY_SESSIONS"
    UNAVAILABLE = "UNAVAILABLE"
    UNKNOWN_DOCUMENT = "UNKNOWN_DOCUMENT"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNSUPPORTED = "UNSUPPORTED"
    WORKER_LOST = "WORKER_LOST"
    OTHER = "OTHER"


def label_of(error: BaseException) -> Reason:
    """Returns the label of an error; exceptions that are not ours are bugs."""
    if not isinstance(error, Stream2LLMError):
        return Reason.INTERNAL
    return Reason.__members__.get(error.reason, Reason.OTHER)


class Refusals:
    """Counts and logs for one router."""

    def __init__(self, metrics: RouterMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._budget = LineBudget()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the error that ends an RPC, whatever its source; not a client that left."""
        try:
            yield
        except PeerGoneError:
            raise
        except Exception as error:
            self._metrics.rpc_failed(label_of(error))
            raise

    @contextmanager
    def at_the_door(self, rpc: str, peer: str, session_id: str = "") -> Iterator[None]:
        """Logs a refused request; `session_id` is empty where it is not known yet."""
        try:
            yield
        except Stream2LLMError as error:
            self._log(error, rpc, peer, session_id)
            raise

    def turned_away(self, error: Stream2LLMError, rpc: str, peer: str) -> None:
        """Counts and logs a request that reaches no handler."""
        self._metrics.rpc_failed(label_of(error))
        self._log(error, rpc, peer, "")

    def _log(self, error: Stream2LLMError, rpc: str, peer: str, session_id: str) -> None:
        left_out = self._budget.take(label_of(error), self._clock.monotonic_s())
        if left_out is None:
            return
        more = f" left_out_before={left_out}" if left_out else ""
        _logger.info(
            "refused rpc=%s session_id=%s peer=%s tenant=%s reason=%s message=%r%s",
            *(rpc, session_id or "(not known yet)", peer, caller().tenant),
            *(error.reason, error.message, more),
        )
