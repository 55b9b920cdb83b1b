"""One question with streamed documents, for `stream2llm generate`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.api.options import DocumentOrdering, OversizedDocuments
from stream2llm.api.sampling import SamplingParameters
from stream2llm.cli.addresses import naming_router
from stream2llm.cli.output import Sink
from stream2llm.client import ChatMessage, Client, Document, DocumentRef, Session
from stream2llm.client.chat_inputs import JsonObject

DEFAULT_SYSTEM = "You answer questions about the documents you are given, briefly and exactly."


@dataclass(frozen=True, slots=True)
class Request:
    """A question, and how to send its documents."""

    question: str
    system: str | None
    # With a prefix the prompt is plain text: prefix, documents, question.
    prefix: str | None
    sampling: SamplingParameters
    # For the chat template: tools, and a JSON object of variables.
    tools: Sequence[JsonObject] | None = None
    chat_template_kwargs: str | None = None
    # Wait for all documents, then send them in one event.
    once: bool = False
    gap_s: float = 0.0
    # With each document send the whole list, the newest document as the most relevant.
    updates: bool = False
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    oversized: OversizedDocuments = OversizedDocuments.FAIL
    # From the seal; None: the cluster's.
    ttft_slo_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """Where a router is, or several of a cluster, and how to connect with them."""

    addresses: tuple[str, ...]
    security: ClientSecurity = PLAIN


def ask(request: Request, documents: Iterable[Document], router: Router, sink: Sink) -> None:
    """Streams the documents and shows the answer; raises the server's errors."""
    security = router.security
    try:
        client = Client(router.addresses, tls=security.tls, token=security.credentials.secret)
        with client, naming_router(", ".join(router.addresses)):
            _ask(request, _paced(documents, request.gap_s), client, sink)
    except Stream2LLMError as error:
        sink.error(error)
        raise
    finally:
        sink.close()


def _ask(request: Request, documents: Iterable[Document], client: Client, sink: Sink) -> None:
    chat = request.prefix is None and _uses_chat(request, client)
    if request.once:
        documents = list(documents)  # before the session opens: "once" waits for all of them
    options = session_options(request, chat=chat) | {
        "ordering": request.ordering,
        "oversized_documents": request.oversized,
        "ttft_slo_ms": request.ttft_slo_ms,
        "tools": request.tools,
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    with client.session(**options, sampling=request.sampling, on_event=sink.event) as session:
        _send(request, documents, session)
        session.answers()


def _send(request: Request, documents: Iterable[Document], session: Session) -> None:
    if request.once:
        session.append(*documents)
    elif request.updates:
        for newest_first in _lists(documents):
            session.update(newest_first)
    else:
        for document in documents:
            session.append(document)


def _lists(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields per document the list that it heads; those sent before by id."""
    sent: list[Document] = []
    for newest in documents:
        yield [newest, *sent]
        sent.insert(0, DocumentRef(newest.id))


def session_options(request: Request, *, chat: bool) -> dict[str, Any]:
    """Returns the template: a conversation, or plain text around the documents."""
    if not chat:
        return {"prefix": request.prefix or "", "suffix": f"\n\n{request.question}\n"}
    system = request.system or DEFAULT_SYSTEM
    slot = _free_slot(system + request.question)
    messages = [ChatMessage("system", system), ChatMessage("user", f"{slot}\n\n{request.question}")]
    return {"chat": messages, "context_slot": slot}


def _uses_chat(request: Request, client: Client) -> bool:
    if client.model_info().has_chat_template:
        return True
    if request.system is not None:
        message = "this model has no chat template: use --prefix instead of --system"
        raise InvalidRequestError(message, field="open.chat")
    return False


def _free_slot(text: str) -> str:
    """Returns a slot that the conversation's own text does not contain."""
    slot = "{{context}}"
    while slot in text:
        slot = f"{{{slot}}}"
    return slot


def _paced(documents: Iterable[Document], gap_s: float) -> Iterator[Document]:
    never_set = threading.Event()
    for number, document in enumerate(documents):
        if number and gap_s:
            never_set.wait(gap_s)
        yield document
