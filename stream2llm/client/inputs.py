"""What a client sends: documents, templates and prompts, as plain values.

Knows nothing of gRPC; `translate.py` makes messages of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stream2llm.errors import InvalidRequestError
from stream2llm.ordering import DocumentOrdering

# Text, or the token ids it stands for.
Content = str | Sequence[int]

DEFAULT_CONTEXT_SLOT = "{{context}}"


@dataclass(frozen=True, slots=True)
class Document:
    """One retrieved document; without content it names one sent before."""

    content: Content | None = None
    """Text or token ids; None names a document sent before."""
    id: str = ""
    """The document's name: unique among those with content in one event; an update may list it more
    than once. An appended document needs one only to be named later."""
    stays: float | None = None
    """In an update: how sure you are that it stays at its place, in [0, 1]; a hint to what may be
    handed over ahead of the seal. None: not known."""


def DocumentRef(id: str, stays: float | None = None) -> Document:  # noqa: N802 - reads as the value it makes
    """A document sent before, by its id: for `update`, which then sends no text again."""
    return Document(id=id, stays=stays)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    """"system", "user" or "assistant"."""
    content: str
    """What is said."""


DocumentLike = Document | Content
MessageLike = ChatMessage | Mapping[str, str]
Prompt = Content | Sequence[MessageLike]


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """What stands before and behind the documents."""

    prefix: Content = ""
    suffix: Content = ""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A conversation; exactly one message holds the slot, exactly once."""

    messages: tuple[ChatMessage, ...]
    context_slot: str = DEFAULT_CONTEXT_SLOT


def template_of(
    prefix: Content | None,
    suffix: Content | None,
    chat: Sequence[MessageLike] | None,
    context_slot: str | None,
) -> PlainTemplate | ChatTemplate:
    """The one template that the arguments of `session` describe."""
    if chat is None:
        if context_slot is not None:
            raise InvalidRequestError("context_slot needs chat", field="open.plain")
        return PlainTemplate(prefix or "", suffix or "")
    if prefix is not None or suffix is not None:
        message = "chat excludes prefix and suffix: write them into the messages"
        raise InvalidRequestError(message, field="open.chat")
    return ChatTemplate(chat_messages(chat), context_slot or DEFAULT_CONTEXT_SLOT)


@dataclass(frozen=True, slots=True)
class Ordering:
    """In which order the documents of an update stand, and how the model hears of it."""

    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # None: the server's own; empty: the model is not told the ranking.
    ranking_note: str | None = None


def chat_messages(messages: Iterable[MessageLike]) -> tuple[ChatMessage, ...]:
    """Messages given as values or as {"role": ..., "content": ...}."""
    return tuple(_chat_message(message) for message in messages)


def _chat_message(message: MessageLike) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise InvalidRequestError(
            f"a chat message has a role and a content, not {message!r}", field="chat.messages"
        )
    return ChatMessage(message["role"], message["content"])


def appended(documents: Iterable[DocumentLike]) -> tuple[Document, ...]:
    """Documents for an append: each has content; ids may be empty."""
    result = tuple(_document(item) for item in documents)
    for document in result:
        if document.content is None:
            message = f"document {document.id!r} has no content; only an update may name it by id"
            raise InvalidRequestError(message, field="append.documents")
    return result


def updated(documents: Iterable[DocumentLike]) -> tuple[Document, ...]:
    """Documents for an update: all have ids; those without one are named by content."""
    seen: dict[str, int] = {}
    return tuple(_named(_document(item), seen) for item in documents)


def _document(item: DocumentLike) -> Document:
    if isinstance(item, Document):
        if item.content is not None:
            check_content(item.content)
        return item
    check_content(item)
    return Document(item)


def check_content(content: object) -> None:
    """Refuses what is neither text nor a sequence of token ids."""
    if isinstance(content, str):
        return
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TypeError(f"expected text or a list of token ids, not {type(content).__name__}")
    for token_id in content:
        if not isinstance(token_id, int):
            raise TypeError(
                f"a list stands for the token ids of one document, and {token_id!r} is none; "
                "give several documents as append(first, second) or append(*documents)"
            )


def _named(document: Document, seen: dict[str, int]) -> Document:
    if document.id:
        return document
    if document.content is None:
        raise InvalidRequestError("a document needs content or an id", field="update.documents")
    name = f"auto-{_digest(document.content)}"
    seen[name] = seen.get(name, 0) + 1
    name = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return Document(document.content, name, document.stays)


def _digest(content: Content) -> str:
    data = content if isinstance(content, str) else f"ids:{list(content)}"
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:16]
