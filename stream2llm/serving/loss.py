"""Why a router or worker was lost, in one line of text that begins with the cause.

Text, because it travels from an engine's watcher through an actor to the controller, and
into its log, its status and its events as it is.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """What happened to it."""

    # Its process or its engine ended.
    DIED = "died"
    # Its engine gave no sign of life; its actor did.
    HUNG = "hung"
    # Its actor gave no answer.
    UNRESPONSIVE = "unresponsive"
    # It could not be started, or not be connected with the others.
    START_FAILED = "start_failed"


def lost_by(cause: Cause, text: str) -> str:
    """Returns the line."""
    return f"{cause}: {text}"


def cause_of(line: str) -> Cause:
    """Returns the cause in a line; DIED for a line that names none."""
    named = line.partition(":")[0]
    return Cause(named) if named in _NAMES else Cause.DIED


_NAMES = frozenset(Cause)
