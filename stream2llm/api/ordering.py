"""In which order the documents of an update stand in a session's context."""

from __future__ import annotations

from enum import StrEnum


class DocumentOrdering(StrEnum):
    """Chosen when a session opens; `router/ordering.py` says what each amounts to."""

    AS_GIVEN = "as_given"
    """The order of the update."""
    STABLE = "stable"
    """What the update leaves valid stays where it is; a note in the prompt says the ranking."""
