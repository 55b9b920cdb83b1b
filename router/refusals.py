"""Counts errors that clients get by reason, and logs refusals before admission.

An admitted session logs its own end, but a request refused earlier has no session. A
client in a retry loop could write thousands of lines a second here, so each reason has
a number of lines per period, and the first line of the next period says how many were
left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from router.metrics import RouterMetrics
from stream2llm.api.errors import Stream2LLMError
from stream2llm.serving.clock import Clock
from stream2llm.serving.stream_writer import PeerGoneError

_logger = logging.getLogger(__name__)

LINES_PER_PERIOD = 10
PERIOD_S = 10.0


class Reason(StrEnum):
    """Every reason that a router gives, its own and those of workers that it passes on.

    A closed set, as labels must be; `OTHER` stands for reasons of newer workers.
    """

    BAD_CHAT = "BAD_CHAT"
    BAD_DOCUMENT_ID = "BAD_DOCUMENT_ID"
    BAD_HANDOVER = "BAD_HANDOVER"
    BAD_ORDERING = "BAD_ORDERING"
    BAD_RANKING_NOTE = "BAD_RANKING_NOTE"
    BAD_SAMPLING = "BAD_SAMPLING"
    BAD_TEXT = "BAD_TEXT"
    BAD_TOKEN_ID = "BAD_TOKEN_ID"
    CANCELLED = "CANCELLED"
    CLOSED_WITHOUT_SEAL = "CLOSED_WITHOUT_SEAL"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    DOCUMENT_WITHOUT_CONTENT = "DOCUMENT_WITHOUT_CONTENT"
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
    NOT_FOUND = "NOT_FOUND"
    OVERLOADED = "OVERLOADED"
    SESSION_DOCUMENTS_EXCEEDED = "SESSION_DOCUMENTS_EXCEEDED"
    SESSION_TOKENS_EXCEEDED = "SESSION_TOKENS_EXCEEDED"
    SESSION_TOO_LONG = "SESSION_TOO_LONG"
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


@dataclass
class _Lines:
    """The lines of one reason in its present period."""

    begin_s: float
    num_written: int = 0
    num_left_out: int = 0


class LineBudget:
    """How many lines each reason may still write."""

    def __init__(self, lines: int = LINES_PER_PERIOD, period_s: float = PERIOD_S) -> None:
        self._lines = lines
        self._period_s = period_s
        self._of: dict[Reason, _Lines] = {}

    def take(self, reason: Reason, now_s: float) -> int | None:
        """Returns the number of lines left out since the last one; None to leave this one out."""
        old = self._of.get(reason)
        left_out = 0
        if old is None or now_s - old.begin_s >= self._period_s:
            left_out = old.num_left_out if old else 0
            self._of[reason] = old = _Lines(now_s)
        if old.num_written >= self._lines:
            old.num_left_out += 1
            return None
        old.num_written += 1
        return left_out


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
            "refused rpc=%s session_id=%s peer=%s reason=%s message=%r%s",
            *(rpc, session_id or "(not known yet)", peer, error.reason, error.message, more),
        )
