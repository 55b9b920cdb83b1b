"""Which session a log record belongs to, wherever it is logged in the tasks of its RPC."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from stream2llm.api.trace_context import TraceContext


@dataclass(slots=True)
class LogContext:
    """The session of an RPC; the id is set once it is known."""

    trace: TraceContext | None = None
    session_id: str = ""

    def fields(self) -> dict[str, str]:
        """What is known, by its name in structured logs."""
        known = {"session_id": self.session_id} if self.session_id else {}
        if self.trace is not None:
            known |= {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id}
        return known


_current: ContextVar[LogContext | None] = ContextVar("stream2llm_log_context", default=None)


def bind(context: LogContext) -> None:
    """Sets the context of this task and of those that it starts from now on."""
    _current.set(context)


def current_fields() -> dict[str, str]:
    """The fields of the present context; none outside a session."""
    context = _current.get()
    return {} if context is None else context.fields()
