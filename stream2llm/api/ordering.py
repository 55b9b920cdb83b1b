"""In which order the documents of an update stand in a session's context."""

from __future__ import annotations

from enum import StrEnum

from stream2llm.api.errors import InvalidRequestError


class DocumentOrdering(StrEnum):
    """Chosen when a session opens; `router/ordering.py` says what each amounts to."""

    AS_GIVEN = "as_given"
    """The order of the update."""
    STABLE = "stable"
    """What the update leaves valid stays where it is; the model is told the ranking."""


def ordering_of(name: str) -> DocumentOrdering:
    """The ordering of that name; raises InvalidRequestError that says which there are."""
    try:
        return DocumentOrdering(name)
    except ValueError:
        raise bad_ordering(name) from None


def bad_ordering(given: object) -> InvalidRequestError:
    """For what is no ordering: a name, or a number from the wire."""
    allowed = " or ".join(DocumentOrdering)
    return InvalidRequestError(
        f"open.ordering is {given!r}; it must be {allowed}",
        reason="BAD_ORDERING",
        field="open.ordering",
    )
