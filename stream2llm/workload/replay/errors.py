"""What a failed session is counted under. Pure; a small set of words, never a message."""

from __future__ import annotations

from typing import Final

from stream2llm.api.errors import Stream2LLMError

CANCELLED: Final = "CANCELLED"
DEADLINE: Final = "DEADLINE_EXCEEDED"


def error_code(error: BaseException) -> str:
    """The gRPC status and, where it says more, our reason: "UNAVAILABLE: WORKER_LOST"."""
    if isinstance(error, TimeoutError):
        return DEADLINE
    if not isinstance(error, Stream2LLMError):
        return f"INTERNAL: {type(error).__name__}"
    if error.reason in (error.status_name, CANCELLED):
        return error.reason
    return f"{error.status_name}: {error.reason}"
