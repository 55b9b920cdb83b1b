"""What a client may ask of a lane: `response.create`, checked by name, and our extension of it.

The extension is one object under the name `stream2llm`, in an event and in an input item.
Clients that do not know it need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.requests import ChatMessage, ChatPrompt
from stream2llm.api.sampling import SamplingParameters
from stream2llm.client.chat_inputs import ChatOptions, chat_messages
from stream2llm.gateway import parameters
from stream2llm.gateway.answer_format import Strict
from stream2llm.gateway.forms import EXTENSION
from stream2llm.gateway.lanes.conversation import Given, SlotDocument
from stream2llm.gateway.parsing import Parsing
from stream2llm.gateway.requests import Message
from stream2llm.gateway.response_items import messages_of
from stream2llm.gateway.response_requests import ResponsesRequest

_HONOURED = ("previous_response_id", "prompt_cache_options", "store")


class DocumentMark(Strict):
    """Makes an input item a document of the context slot."""

    # Empty: it cannot be named later.
    id: str = ""


class ItemExtension(Strict):
    """`stream2llm` of an input item."""

    document: DocumentMark


class CreateExtension(Strict):
    """`stream2llm` of a `response.create`. Null stands for "as before in the conversation"."""

    # The text in a message that the documents replace; by default {{context}}, once there are some.
    context_slot: str | None = Field(default=None, min_length=1)
    ordering: Literal["as_given", "stable"] | None = None
    ranking_note: str | None = None
    # Whether to send `stream2llm.progress` events.
    progress: bool | None = None
    # Milliseconds from the seal to the first token.
    ttft_slo_ms: int | None = None


class PromptCacheOptions(Strict):
    """What OpenAI's clients may say about caching; we cache on our own."""

    # As `generate: false`.
    prewarm: bool | None = None
    mode: Literal["implicit"] | None = None
    ttl: Literal["30m"] | None = None


@dataclass(frozen=True, slots=True)
class OpenedWith:
    """What a session has from its beginning to its end."""

    model: str
    sampling: SamplingParameters
    ttft_slo_ms: int | None


class CreateRequest(ResponsesRequest):
    """`response.create` of a socket, and the body of a POST that prepares or continues."""

    not_honoured: ClassVar[Mapping[str, parameters.Neutral]] = {
        name: neutral for name, neutral in parameters.RESPONSES.items() if name not in _HONOURED
    }

    input: str | list[Message] = Field(default_factory=list)
    generate: bool | None = None
    previous_response_id: str | None = None
    stream_id: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    store: bool | None = None
    stream2llm: CreateExtension | None = None

    @property
    def generates(self) -> bool:
        """Whether an answer is asked for."""
        options = self.prompt_cache_options
        prewarms = options is not None and bool(options.prewarm)
        return not prewarms and self.generate is not False

    @property
    def is_of_lane(self) -> bool:
        """Whether a request without a socket prepares, continues or keeps something."""
        continues = self.previous_response_id is not None
        return not self.generates or continues or bool(self.store) or self._has_extension

    @property
    def _has_extension(self) -> bool:
        items = [] if isinstance(self.input, str) else self.input
        return self.stream2llm is not None or any(EXTENSION in item for item in items)

    def check_lane(self) -> None:
        """Raises for a parameter that a lane does not honour, and for tools that cannot be."""
        self.check_others()
        self.constraints()

    @property
    def wants_progress(self) -> bool:
        """Whether events of progress are asked for."""
        return self.stream2llm is not None and bool(self.stream2llm.progress)

    def opened_with(self, parsing: Parsing) -> OpenedWith:
        """What its session is opened with, so that the answer can be parsed."""
        extension = self.stream2llm or CreateExtension()
        sampling = parsing.sampling(self.sampling())
        return OpenedWith(self.model or "", sampling, extension.ttft_slo_ms)

    def given(self) -> Given:
        """What it adds to the conversation; raises for items that are not supported."""
        extension = self.stream2llm or CreateExtension()
        items = messages_of(self.input) if isinstance(self.input, str) else self.input
        documents = tuple(
            _document(item, f"input[{index}]")
            for index, item in enumerate(items)
            if item.get(EXTENSION) is not None
        )
        ordering = extension.ordering
        return Given(
            _turns([item for item in items if item.get(EXTENSION) is None]),
            documents,
            extension.context_slot,
            None if ordering is None else DocumentOrdering(ordering),
            extension.ranking_note,
        )

    def first_chat(self) -> ChatPrompt:
        """Its instructions, tools and variables, which are not part of the conversation."""
        options = ChatOptions(**self.chat_options()).fields()
        return ChatPrompt(_turns([], self.instructions), **options)


def _turns(items: list[Message], instructions: str | None = None) -> tuple[ChatMessage, ...]:
    return chat_messages(messages_of(items, instructions))


def _document(item: Message, field: str) -> SlotDocument:
    try:
        mark = ItemExtension.model_validate(item[EXTENSION]).document
    except ValidationError as error:
        message = f"{field}.{EXTENSION}: {error.errors()[0]['msg']}"
        raise InvalidRequestError(message, field="input") from None
    if item.get("content") is None:
        if not mark.id:
            message = f"{field} is a document without content and without an id"
            raise InvalidRequestError(message, field="input")
        return SlotDocument(mark.id, None)
    (turn,) = _turns([{"role": "user", "content": item["content"]}])
    return SlotDocument(mark.id, turn.content)


def create_request(event: Mapping[str, Any]) -> CreateRequest:
    """Reads a request; raises InvalidRequestError, UnsupportedError, or pydantic's error."""
    request = CreateRequest.model_validate({k: v for k, v in event.items() if k != "type"})
    request.check_lane()
    return request
