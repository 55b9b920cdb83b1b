"""The log lines of a session: one at each restart, one where it comes from another
router, and one at its end. Pure.

`key=value` pairs, so that one search finds all sessions that a worker had, or that
restarted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from router.metrics import InputMode
from router.recovery import Cause
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Finished, Timings
from stream2llm.api.requests import ResumedSession


@dataclass(slots=True)
class SessionRecord:
    """What the last line of a session says, beside the outcome."""

    tenant: str
    session_id: str = ""
    mode: InputMode = InputMode.ONESHOT
    # In the order in which they had the session.
    worker_ids: list[str] = field(default_factory=list)
    # Length of the context, or of the sealed prompt.
    num_tokens: int = 0
    # Length of the answer so far.
    num_answer_tokens: int = 0
    computed_tokens: int = 0
    restarts: int = 0
    # None before the first token.
    timings: Timings | None = None
    # None without an answer that has ended.
    finished: Finished | None = None

    def at(self, worker_id: str) -> None:
        """A worker has the session now."""
        if self.worker_ids[-1:] != [worker_id]:
            self.worker_ids.append(worker_id)


def ended_line(
    record: SessionRecord, outcome: str, lasted_s: float, error: Stream2LLMError | None
) -> str:
    """Returns the line of a session that has ended; `outcome` is that of the metrics."""
    return "session_ended " + _joined(_end(record, outcome, lasted_s, error))


def answer_ended_line(
    record: SessionRecord, outcome: str, since_seal_s: float, error: Stream2LLMError | None
) -> str:
    """Returns the line of an answer other than the session's first; the session has its own."""
    return "answer_ended " + _joined(_end(record, outcome, since_seal_s, error))


def restarted_line(
    record: SessionRecord, cause: Cause, lost: str, num_tokens: int, error: Stream2LLMError
) -> str:
    """Returns the line of a session that was placed again, with `num_tokens` tokens."""
    pairs = (
        ("session_id", record.session_id),
        ("cause", str(cause)),
        ("lost", lost or "(none)"),
        ("worker", record.worker_ids[-1]),
        ("num_tokens", num_tokens),
        ("restarts", record.restarts),
        ("message", repr(error.message)),
    )
    return "session_restarted " + _joined(iter(pairs))


def resumed_line(record: SessionRecord, resumed: ResumedSession) -> str:
    """Returns the line of a session that a client has brought from another router."""
    pairs = (
        ("session_id", record.session_id),
        ("tenant", record.tenant),
        ("answer_tokens", len(resumed.token_ids)),
        ("restarts", resumed.restarts),
    )
    return "session_resumed " + _joined(iter(pairs))


def _end(
    record: SessionRecord, outcome: str, lasted_s: float, error: Stream2LLMError | None
) -> Iterator[tuple[str, object]]:
    yield "session_id", record.session_id or "(not known)"
    yield "outcome", outcome
    if error is not None:
        yield "reason", error.reason
    yield "tenant", record.tenant
    yield "workers", ",".join(record.worker_ids) or "(none)"
    yield "input_mode", str(record.mode)
    yield "tokens", record.num_tokens
    yield "answer_tokens", record.num_answer_tokens
    yield "computed_tokens", record.computed_tokens
    yield "restarts", record.restarts
    if record.timings is not None:
        yield "ttft_from_seal_s", f"{record.timings.ttft_from_seal_s:.3f}"
    yield "total_s", f"{lasted_s:.3f}"
    if record.finished is not None:
        yield "finish_reason", str(record.finished.reason)
    if error is not None:
        yield "message", repr(error.message)


def _joined(pairs: Iterator[tuple[str, object]]) -> str:
    return " ".join(f"{key}={value}" for key, value in pairs)
