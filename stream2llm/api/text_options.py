"""How a session's texts become tokens: what may be a control token, and what is too long."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.ordering import DocumentOrdering


class ControlTokens(StrEnum):
    """In which texts of the client the text of a control token is that token."""

    # In none: all of it is data. The chat template alone writes control tokens.
    NONE = "none"
    # In what stands around the documents: prefix, suffix, contents of chat messages other than
    # those of tools, a whole prompt.
    TEMPLATE = "template"
    # In documents and results of tools too. Their authors can then write the answer.
    ALL = "all"


class OversizedDocuments(StrEnum):
    """What becomes of a document that is longer than the room that is left for it."""

    # It fails the session.
    FAIL = "fail"
    # It stands in the context as an empty document.
    REFUSE = "refuse"
    # Its beginning stands in the context, as much as there is room for.
    CUT = "cut"


Option = TypeVar("Option", DocumentOrdering, ControlTokens, OversizedDocuments)
_FIELDS: dict[type[StrEnum], str] = {
    DocumentOrdering: "open.ordering",
    ControlTokens: "control_tokens",
    OversizedDocuments: "oversized_documents",
}


def option_of(kind: type[Option], name: str) -> Option:
    """The option of that name; raises InvalidRequestError that says which there are."""
    try:
        return kind(name)
    except ValueError:
        raise bad_option(kind, name) from None


def bad_option(kind: type[Option], given: object) -> InvalidRequestError:
    """For what is no such option: a name, or a number from the wire."""
    field = _FIELDS[kind]
    return InvalidRequestError(
        f"{field} is {given!r}; it must be {', '.join(list(kind)[:-1])} or {list(kind)[-1]}",
        reason=f"BAD_{field.removeprefix('open.').upper()}",
        field=field,
    )
