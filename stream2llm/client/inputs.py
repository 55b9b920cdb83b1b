"""What a caller hands in to the values of `api/requests.py`.

Every argument gets its plain form, or is refused by the name of its field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import replace
from typing import cast

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.api.options import asked_slo
from stream2llm.api.requests import (
    DEFAULT_CONTEXT_SLOT,
    AppendContext,
    ChatPrompt,
    ChatTemplate,
    Content,
    Document,
    PlainTemplate,
    UpdateContext,
)
from stream2llm.api.sampling import SamplingParameters
from stream2llm.client.chat_inputs import ChatOptions, MessageLike, chat_messages, is_message


def DocumentRef(id: str, stays: float | None = None) -> Document:  # noqa: N802 - reads as the value it makes
    """A document sent before, by its id: for `update`, which then sends no text again."""
    return Document(id=id, stays=stays)


DocumentLike = Document | Content
Prompt = Content | Sequence[MessageLike]


def template_of(
    prefix: Content | None,
    suffix: Content | None,
    chat: Sequence[MessageLike] | None,
    context_slot: str | None,
    options: ChatOptions = ChatOptions(),  # noqa: B008 - frozen
) -> PlainTemplate | ChatTemplate:
    """The one template that the arguments of `session` describe."""
    if chat is None:
        if context_slot is not None:
            raise InvalidRequestError("context_slot needs chat", field="open.plain")
        options.check_unused("open.plain")
        return PlainTemplate(
            _content_or_none(prefix, "open.plain.prefix"),
            _content_or_none(suffix, "open.plain.suffix"),
        )
    if prefix is not None or suffix is not None:
        message = "chat excludes prefix and suffix: write them into the messages"
        raise InvalidRequestError(message, field="open.chat")
    slot = DEFAULT_CONTEXT_SLOT if context_slot is None else context_slot
    return ChatTemplate(chat_messages(chat), slot, **options.fields())


def _content_or_none(content: Content | None, field: str) -> Content:
    return "" if content is None else content_of(content, field)


def prompt_of(prompt: Prompt, options: ChatOptions) -> Content | ChatPrompt:
    """A complete prompt: text, token ids or chat messages."""
    first = prompt[0] if isinstance(prompt, list | tuple) and prompt else prompt
    if is_message(first):
        messages = chat_messages(cast("Sequence[MessageLike]", prompt))
        return ChatPrompt(messages, **options.fields())
    options.check_unused("prompt")
    return content_of(prompt, "prompt")


def sampling_of(sampling: SamplingParameters | None) -> SamplingParameters:
    """The parameters; the defaults for None."""
    if sampling is not None and not isinstance(sampling, SamplingParameters):
        raise arguments.refused("sampling", sampling, "SamplingParameters")
    return sampling or SamplingParameters()


def handover_of(mode: HandoverMode | None) -> HandoverMode | None:
    """A mode of `HANDOVER_MODES`; None leaves it to the cluster."""
    if mode is not None and mode not in HANDOVER_MODES:
        raise arguments.refused("open.handover", mode, " or ".join(HANDOVER_MODES))
    return mode


def ttft_slo_of(value: object, field: str) -> int | None:
    """Milliseconds from the seal; None leaves the deadline to the cluster."""
    return None if value is None else asked_slo(field, value).ttft_slo_ms


def appended(documents: Iterable[DocumentLike]) -> tuple[Document, ...]:
    """Documents for an append: each has content; ids may be empty."""
    result = _documents(documents, "append.documents")
    for index, document in enumerate(result):
        if document.content is None:
            message = (
                f"document {arguments.shown(document.id)} has no content; "
                "only an update may name it by id"
            )
            raise InvalidRequestError(message, field=f"append.documents[{index}].content")
    return result


def updated(documents: Iterable[DocumentLike]) -> tuple[Document, ...]:
    """Documents for an update: all have ids; those without one are named by content.

    A text or a Document by itself is a list of one.
    """
    seen: dict[str, int] = {}
    return tuple(
        _named(document, seen, f"update.documents[{index}]")
        for index, document in enumerate(_documents(documents, "update.documents"))
    )


def last_change(
    append: Iterable[DocumentLike] | None, update: Iterable[DocumentLike] | None
) -> AppendContext | UpdateContext | None:
    """The change that comes with a seal; None for none."""
    if append is not None and update is not None:
        raise InvalidRequestError("append excludes update", field="seal.append")
    if update is not None:
        return UpdateContext(updated(update))
    return None if append is None else AppendContext(appended(append))


def _documents(documents: Iterable[DocumentLike], field: str) -> tuple[Document, ...]:
    items = arguments.many(documents, field, "a list of documents", str, Document)
    return tuple(_document(item, f"{field}[{index}]") for index, item in enumerate(items))


def _document(item: DocumentLike, field: str) -> Document:
    if not isinstance(item, Document):
        return Document(content_of(item, field))
    if item.content is None:
        return item
    return replace(item, content=content_of(item.content, f"{field}.content"))


_HIGHEST_TOKEN_ID = 2**32 - 1


def content_of(content: object, field: str) -> str | list[int]:
    """Text as it is, token ids as a list of int; refuses what is neither."""
    if isinstance(content, str):
        return content
    is_list = isinstance(content, Sized) and isinstance(content, Iterable)
    if not is_list or isinstance(content, bytes | bytearray | Mapping | Set):
        raise arguments.refused(field, content, "text or a list of token ids")
    ids = [
        item if type(item) is int else _token_id(item, f"{field}[{index}]")
        for index, item in enumerate(arguments.as_list(content))
    ]
    if ids and not (min(ids) >= 0 and max(ids) <= _HIGHEST_TOKEN_ID):
        for index, token_id in enumerate(ids):
            arguments.integer(token_id, f"{field}[{index}]", 0, _HIGHEST_TOKEN_ID)
    return ids


def _token_id(item: object, field: str) -> int:
    if isinstance(item, str | bytes | Document | Sequence):
        advice = (
            "; give several documents as append(first, second) or append(*documents)"
            if field.startswith("append.")
            else ""
        )
        raise InvalidRequestError(
            f"a list stands for the token ids of one text, and {field} is "
            f"{arguments.shown(item)}{advice}",
            field=field,
        )
    return arguments.integer(item, field, 0, _HIGHEST_TOKEN_ID)


def _named(document: Document, seen: dict[str, int], field: str) -> Document:
    if document.id != "":  # its type is checked where the message is made
        return document
    if document.content is None:
        raise InvalidRequestError("a document needs content or an id", field=field)
    name = f"auto-{_digest(document.content)}"
    seen[name] = seen.get(name, 0) + 1
    name = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return Document(document.content, name, document.stays)


def _digest(content: Content) -> str:
    data = content if isinstance(content, str) else f"ids:{content}"
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:16]
