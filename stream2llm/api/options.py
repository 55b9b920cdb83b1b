"""What a session may choose when it opens, in the words that all parts share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple, TypeVar

from stream2llm.api.arguments import integer
from stream2llm.api.call_metadata import TTFT_SLO_NAMES
from stream2llm.api.errors import InvalidRequestError

# An hour: a session may not be open for longer either.
MAX_TTFT_SLO_MS = 3_600_000
BAD_TTFT_SLO = "BAD_TTFT_SLO"


class AskedSlo(NamedTuple):
    """One deadline, and the field or the name in the call's metadata that asks for it."""

    field: str
    ttft_slo_ms: int


def asked_slo(field: str, value: object) -> AskedSlo:
    """A deadline within the limits; raises InvalidRequestError that names the field and them."""
    return AskedSlo(field, integer(value, field, 1, MAX_TTFT_SLO_MS, BAD_TTFT_SLO))


def slos_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterator[AskedSlo]:
    """Yields every deadline in the metadata of a call; raises InvalidRequestError for a bad one."""
    for name, value in metadata or ():
        if name in TTFT_SLO_NAMES:
            is_number = isinstance(value, str) and value.isascii() and value.isdecimal()
            yield asked_slo(name, int(value) if is_number and len(value) < 20 else value)


class DocumentOrdering(StrEnum):
    """Chosen when a session opens; `router/ordering.py` says what each amounts to."""

    AS_GIVEN = "as_given"
    """The order of the update."""
    STABLE = "stable"
    """What the update leaves valid stays where it is; a note in the prompt says the ranking."""


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
