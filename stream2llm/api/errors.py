"""Every error a user can meet, and whose fault it is.

    Stream2LLMError
     |- InvalidRequestError     INVALID_ARGUMENT     the client's request is wrong; names the field
     |- EventOrderError         FAILED_PRECONDITION  the client's event does not fit the session's state
     |- NotFoundError           NOT_FOUND            no such model
     |- UnauthenticatedError    UNAUTHENTICATED      no credentials, or none that count
     |- NotPermittedError       PERMISSION_DENIED    these credentials do not allow it
     |- UnsupportedError        UNIMPLEMENTED        cannot be honoured; refused rather than ignored
     |- OverloadedError         RESOURCE_EXHAUSTED   a limit of ours; try again later, or send less
     |- UnavailableError        UNAVAILABLE          a worker was lost, is starting or draining; retry
     |- IdleTimeoutError        DEADLINE_EXCEEDED    the client sent nothing for too long
     `- InternalError           INTERNAL             our bug

The server raises them anywhere; one function (`stream2llm/api/rpc_status.py`) turns them
into gRPC statuses. The client raises the same classes from the statuses it
gets. This module knows neither gRPC nor any engine.
"""

from __future__ import annotations

from typing import ClassVar

ERROR_DOMAIN = "stream2llm"


class Stream2LLMError(Exception):
    """Base of all. `reason` is a stable UPPER_SNAKE word a program can test.

    `field` names the request field at fault (dotted path), None when no single
    field is. `retry_after_s` is set when trying again can help.
    """

    status_name: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_s = (
            retry_after_s if retry_after_s is not None else self.default_retry_after_s
        )


class InvalidRequestError(Stream2LLMError):
    """The request can never succeed as it is."""

    status_name = "INVALID_ARGUMENT"
    default_reason = "INVALID_REQUEST"


class EventOrderError(Stream2LLMError):
    """The event does not fit the state of its session."""

    status_name = "FAILED_PRECONDITION"
    default_reason = "EVENT_OUT_OF_ORDER"


class NotFoundError(Stream2LLMError):
    """The named thing is not served here."""

    status_name = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class UnauthenticatedError(Stream2LLMError):
    """The caller gave no credentials, or none that count."""

    status_name = "UNAUTHENTICATED"
    default_reason = "NO_CREDENTIALS"


class NotPermittedError(Stream2LLMError):
    """The caller's credentials do not allow this call."""

    status_name = "PERMISSION_DENIED"
    default_reason = "NOT_PERMITTED"


class UnsupportedError(Stream2LLMError):
    """Understood, but this cluster cannot do it."""

    status_name = "UNIMPLEMENTED"
    default_reason = "UNSUPPORTED"


class OverloadedError(Stream2LLMError):
    """A limit of the server is reached."""

    status_name = "RESOURCE_EXHAUSTED"
    default_reason = "OVERLOADED"
    default_retry_after_s = 1.0


class UnavailableError(Stream2LLMError):
    """No worker or router can serve this now; the same request may succeed soon."""

    status_name = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"
    default_retry_after_s = 1.0


class IdleTimeoutError(Stream2LLMError):
    """The client sent no event for longer than the server waits."""

    status_name = "DEADLINE_EXCEEDED"
    default_reason = "INPUT_IDLE"


class InternalError(Stream2LLMError):
    """A bug of ours, or an engine that failed."""

    status_name = "INTERNAL"
    default_reason = "INTERNAL"


def extended(error: Stream2LLMError, more: str, retry_after_s: float | None) -> Stream2LLMError:
    """Returns the same error with more to its message, and another time after which to retry."""
    return type(error)(
        f"{error.message}; {more}",
        reason=error.reason,
        field=error.field,
        retry_after_s=retry_after_s,
    )


def times(number: int) -> str:
    """How often something was tried, for messages."""
    return "once" if number == 1 else f"{number} times"


def describe(error: BaseException) -> str:
    """An exception in one line, for parties that may see our inside."""
    return f"{type(error).__name__}: {error}"


ERRORS_BY_STATUS: dict[str, type[Stream2LLMError]] = {
    cls.status_name: cls for cls in Stream2LLMError.__subclasses__()
}
