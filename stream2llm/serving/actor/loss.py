"""Why a router or worker was lost: a value that goes from who notices it to the controller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """The cause of a loss of a router or worker."""

    # Its process or its engine ended.
    DIED = "died"
    # Its engine gave no sign of life; its actor did.
    HUNG = "hung"
    # Its actor gave no answer.
    UNRESPONSIVE = "unresponsive"
    # It could not be started, or not be connected with the others.
    START_FAILED = "start_failed"


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss."""

    cause: Cause
    # One line for operators.
    reason: str
