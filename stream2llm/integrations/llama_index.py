"""LlamaIndex: an LLM over a cluster, and retrievers as sources of a session.

    llm = Stream2LLM(address="127.0.0.1:50051", max_tokens=64)
    await llm.achat([ChatMessage("Who?")])                         # as any LLM

    async with llm.connect() as client, client.session(prefix=..., suffix="Who?") as session:
        await append_from(session, retrieved(wiki, "Who?"), retrieved(news, "Who?"))
        answer = await session.answer()

A retriever of LlamaIndex gives all its nodes at once: each retriever is a source of its own, and
a re-ranker (a node postprocessor) makes another list of them, which `ranked` yields in turn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field

from stream2llm.api.errors import UnsupportedError
from stream2llm.client import (
    AsyncClient,
    Client,
    Document,
    Event,
    Finished,
    SamplingParameters,
    TokenDelta,
)
from stream2llm.client import ChatMessage as OurChatMessage
from stream2llm.client.inputs import Prompt
from stream2llm.integrations.call_options import sampling_with

_ROLES = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.SYSTEM: "system",
}


class Stream2LLM(LLM):
    """An LLM that a cluster serves; synchronous, asynchronous and streaming.

    A call has a connection of its own, and runs in any event loop.
    """

    address: str | list[str]
    """HOST:PORT of a router, or of several."""
    model: str = ""
    """The served model; empty: the one that there is."""
    context_window: int = 8192
    """Most tokens of a prompt and its answer, which LlamaIndex packs prompts by."""
    max_tokens: int | None = None
    """Most tokens of an answer; None: up to the model's limit."""
    temperature: float = 1.0
    """0 is greedy."""
    client_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the client: `tls`, `api_key`, `token`."""

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores it under."""
        return "stream2llm"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex packs prompts by."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or 256,
            is_chat_model=True,
            model_name=self.model or "stream2llm",
        )

    def connect(self) -> AsyncClient:
        """A client of the cluster, whose sessions take context that streams in."""
        return AsyncClient(self.address, **self.client_options)

    def sampling(self, **options: Any) -> SamplingParameters:
        """What a request is sampled with; `options` are those of a call.

        Raises UnsupportedError for options beside those of `SamplingParameters`.
        """
        base = SamplingParameters(max_tokens=self.max_tokens, temperature=self.temperature)
        return sampling_with(base, options)

    # -- chat ----------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        """The whole answer to a conversation."""
        return _chat_response(_last(self._events(_chat(messages), options)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponseGen:
        """The answer to a conversation as it comes."""
        # A generator: LlamaIndex takes any other iterator for a whole response.
        return (_chat_response(each) for each in self._events(_chat(messages), options))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
        """The whole answer to a conversation."""
        return _chat_response(await _alast(self._aevents(_chat(messages), options)))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **options: Any
    ) -> ChatResponseAsyncGen:
        """The answer to a conversation as it comes."""
        return (_chat_response(each) async for each in self._aevents(_chat(messages), options))

    # -- completion ----------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        """The whole continuation of a text."""
        return _last(self._events(prompt, options))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> CompletionResponseGen:
        """The continuation of a text as it comes."""
        return self._events(prompt, options)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> CompletionResponse:
        """The whole continuation of a text."""
        return await _alast(self._aevents(prompt, options))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> CompletionResponseAsyncGen:
        """The continuation of a text as it comes."""
        return self._aevents(prompt, options)

    # -- the cluster ---------------------------------------------------------

    def _events(
        self, prompt: Prompt, options: Mapping[str, Any]
    ) -> Generator[CompletionResponse, None, None]:
        text, sampling = "", self.sampling(**options)
        with Client(self.address, **self.client_options) as client:
            for event in client.generate(prompt, model=self.model, sampling=sampling):
                if (response := _response(event, text)) is not None:
                    text = response.text
                    yield response

    async def _aevents(
        self, prompt: Prompt, options: Mapping[str, Any]
    ) -> AsyncGenerator[CompletionResponse, None]:
        text, sampling = "", self.sampling(**options)
        async with self.connect() as client:
            async for event in client.generate(prompt, model=self.model, sampling=sampling):
                if (response := _response(event, text)) is not None:
                    text = response.text
                    yield response


async def retrieved(retriever: BaseRetriever, query: str) -> AsyncIterator[Document]:
    """What a retriever finds, when it is there: a source for `append_from`."""
    for document in documents_of(await retriever.aretrieve(query)):
        yield document


async def ranked(
    retriever: BaseRetriever, rerankers: Sequence[BaseNodePostprocessor], query: str
) -> AsyncIterator[tuple[Document, ...]]:
    """The list of a retriever, then that of each re-ranker: a source for `update_from`."""
    found = await retriever.aretrieve(query)
    yield documents_of(found)
    for each in rerankers:
        found = await each.apostprocess_nodes(found, QueryBundle(query))
        yield documents_of(found)


def documents_of(found: Sequence[NodeWithScore]) -> tuple[Document, ...]:
    """Documents of a session, each with an empty line behind it, by the ids of nodes. Pure."""
    return tuple(Document(f"{each.node.get_content()}\n\n", id=each.node.node_id) for each in found)


def _chat(messages: Sequence[ChatMessage]) -> list[OurChatMessage]:
    return [OurChatMessage(_role(message), _text(message)) for message in messages]


def _role(message: ChatMessage) -> str:
    if message.role not in _ROLES:
        raise UnsupportedError(f"messages of role {message.role.value!r} are not supported")
    return _ROLES[message.role]


def _text(message: ChatMessage) -> str:
    """What a message says; raises UnsupportedError where it has more than text."""
    for name in ("tool_calls", "function_call"):
        if message.additional_kwargs.get(name):
            raise UnsupportedError(f"{name} of messages are not supported")
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise UnsupportedError(f"content of type {block.block_type!r} is not supported")
    return message.content or ""


def _response(event: Event, text: str) -> CompletionResponse | None:
    """The text so far and what is new of it; at the end usage and reason. None for other events."""
    if isinstance(event, TokenDelta) and event.text:
        return CompletionResponse(text=text + event.text, delta=event.text)
    if not isinstance(event, Finished):
        return None
    details = {
        "prompt_tokens": event.usage.prompt_tokens,
        "completion_tokens": event.usage.completion_tokens,
        "finish_reason": event.reason.value,
    }
    return CompletionResponse(text=text, delta="", additional_kwargs=details)


def _chat_response(response: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )


def _last(responses: Iterator[CompletionResponse]) -> CompletionResponse:
    *_, last = responses
    return last


async def _alast(responses: AsyncIterator[CompletionResponse]) -> CompletionResponse:
    *_, last = [each async for each in responses]
    return last
