"""LangChain: a chat model over a cluster, and retrievers as sources of a session.

    model = ChatStream2LLM(address="127.0.0.1:50051", max_tokens=64)
    await model.ainvoke("Who?")                                     # as any chat model

    async with model.session([("system", "Be brief."), ("user", "{{context}} Who?")]) as session:
        await append_from(session, retrieved(wiki, "Who?"), retrieved(news, "Who?"))
        async for chunk in answer_chunks(session): ...

A retriever of LangChain gives all its documents at once, and so does its callback
(`on_retriever_end`): each retriever is therefore a source of its own, and what it finds is
appended when it is there, whatever the others do. Where the documents of one source come one
after the other (a crawl, pages of results), write an async generator over it instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

from stream2llm.api.errors import UnsupportedError
from stream2llm.client import (
    AsyncClient,
    AsyncSession,
    ChatMessage,
    Client,
    Document,
    Event,
    Finished,
    SamplingParameters,
    TokenDelta,
)
from stream2llm.integrations.call_options import sampling_with

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class ChatStream2LLM(BaseChatModel):
    """A chat model that a cluster serves; synchronous, asynchronous and streaming.

    A call has a connection of its own, and runs in any event loop.
    """

    address: str | list[str]
    """HOST:PORT of a router, or of several."""
    model: str = ""
    """The served model; empty: the one that there is."""
    max_tokens: int | None = None
    """Most tokens of an answer; None: up to the model's limit."""
    temperature: float = 1.0
    """0 is greedy."""
    seed: int | None = None
    """Makes a sampled answer repeatable."""
    client_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the client: `tls`, `api_key`, `token`."""

    @property
    def _llm_type(self) -> str:
        return "stream2llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def session(self, messages: LanguageModelInput, **options: Any) -> ContextSession:
        """A session whose context streams in; one message holds the slot "{{context}}".

        `options` are those of `AsyncClient.session`.
        """
        chat = _chat(self._convert_input(messages).to_messages())
        return ContextSession(self, {"chat": chat, **options})

    def sampling(self, stop: Sequence[str] | None = None, **options: Any) -> SamplingParameters:
        """What a request is sampled with; `options` are those of a call (`invoke`, `bind`).

        Raises UnsupportedError for options beside those of `SamplingParameters`: tools and
        structured output are a gateway's (`ChatOpenAI` of langchain-openai).
        """
        base = SamplingParameters(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed
        )
        return sampling_with(base, {"stop": stop, **options})

    def connect(self) -> AsyncClient:
        """A client of the cluster."""
        return AsyncClient(self.address, **self.client_options)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        return _result(list(self._stream(messages, stop, run_manager, **options)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        return _result(
            [each async for each in self._astream(messages, stop, run_manager, **options)]
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chat, sampling = _chat(messages), self.sampling(stop, **options)
        with Client(self.address, **self.client_options) as client:
            events = client.generate(chat, model=self.model, sampling=sampling)
            for event in events:
                if (chunk := _chunk(event)) is not None:
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chat, sampling = _chat(messages), self.sampling(stop, **options)
        async with self.connect() as client:
            events = client.generate(chat, model=self.model, sampling=sampling)
            async for event in events:
                if (chunk := _chunk(event)) is not None:
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk


class ContextSession:
    """Opens a session with a client of its own in `async with`."""

    def __init__(self, model: ChatStream2LLM, options: dict[str, Any]) -> None:
        self._options = {"model": model.model, "sampling": model.sampling(), **options}
        self._client = model.connect()
        self._session: AsyncSession

    async def __aenter__(self) -> AsyncSession:
        self._session = self._client.session(**self._options)
        try:
            return await self._session.__aenter__()
        except BaseException:
            await self._client.close()
            raise

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._session.__aexit__(*raised)
        finally:
            await self._client.close()


async def answer_chunks(session: AsyncSession) -> AsyncIterator[AIMessageChunk]:
    """Seals a session, and yields its answer as a chat model of LangChain does."""
    async for event in session.seal():
        if (chunk := _chunk(event)) is not None:
            yield chunk.message


async def retrieved(retriever: BaseRetriever, query: str) -> AsyncIterator[Document]:
    """What a retriever finds, when it is there: a source for `append_from`."""
    for document in documents_of(await retriever.ainvoke(query)):
        yield document


async def ranked(
    retrievers: Sequence[BaseRetriever], query: str
) -> AsyncIterator[tuple[Document, ...]]:
    """The list of each retriever in turn: a source for `update_from`.

    From the quickest to the best: a plain search first, then one that re-ranks it.
    """
    for retriever in retrievers:
        yield documents_of(await retriever.ainvoke(query))


def documents_of(found: Sequence[LangChainDocument]) -> tuple[Document, ...]:
    """Documents of a session, each with an empty line behind it; ids stay. Pure."""
    return tuple(Document(f"{each.page_content}\n\n", id=each.id or "") for each in found)


def _chat(messages: Sequence[BaseMessage]) -> list[ChatMessage]:
    return [
        ChatMessage(_role(message), _text(message), name=message.name or "") for message in messages
    ]


def _role(message: BaseMessage) -> str:
    if message.type not in _ROLES:
        raise UnsupportedError(f"messages of type {message.type!r} are not supported")
    return _ROLES[message.type]


def _text(message: BaseMessage) -> str:
    """What a message says; raises UnsupportedError where it has more than text."""
    for name in ("tool_calls", "invalid_tool_calls"):
        if getattr(message, name, None):
            raise UnsupportedError(f"{name} of messages are not supported")
    for block in [] if isinstance(message.content, str) else message.content:
        if not isinstance(block, str) and block.get("type") != "text":
            raise UnsupportedError(f"content of type {block.get('type')!r} is not supported")
    return str(message.text)


def _chunk(event: Event) -> ChatGenerationChunk | None:
    """Text as it comes, then usage and the reason of the end; None for other events."""
    if isinstance(event, TokenDelta) and event.text:
        return ChatGenerationChunk(message=AIMessageChunk(content=event.text))
    if not isinstance(event, Finished):
        return None
    usage = UsageMetadata(
        input_tokens=event.usage.prompt_tokens,
        output_tokens=event.usage.completion_tokens,
        total_tokens=event.usage.prompt_tokens + event.usage.completion_tokens,
    )
    metadata = {"finish_reason": event.reason.value}
    message = AIMessageChunk(content="", usage_metadata=usage, response_metadata=metadata)
    return ChatGenerationChunk(message=message, generation_info=metadata)


def _result(chunks: Sequence[ChatGenerationChunk]) -> ChatResult:
    first, *others = chunks
    whole = sum((each.message for each in others), first.message)
    message = AIMessage(
        content=whole.content,
        usage_metadata=whole.usage_metadata,
        response_metadata=whole.response_metadata,
    )
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=dict(whole.response_metadata))]
    )
