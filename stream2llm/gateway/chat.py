"""Answers of /v1/chat/completions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta
from stream2llm.api.token_step import TokenLogprobs
from stream2llm.gateway.forms import (
    DONE,
    Opening,
    data,
    entry_of,
    error_data,
    finish_reason,
    usage_of,
)
from stream2llm.gateway.requests import ChatRequest


class ChatForm:
    """One chat completion."""

    def __init__(self, request: ChatRequest, opening: Opening) -> None:
        self._opening = opening
        self._names = request.parameter_names()
        options = request.stream_options
        self._includes_usage = bool(options and options.include_usage)
        self._includes_logprobs = bool(request.logprobs)

    def begin(self) -> Iterable[str]:
        yield self._chunk(ChoiceDelta(role="assistant", content=""))

    def pieces(self, event: Event) -> Iterator[str]:
        if isinstance(event, TokenDelta) and (event.text or event.logprobs):
            yield self._chunk(ChoiceDelta(content=event.text), logprobs=event.logprobs)
        elif isinstance(event, Finished):
            yield self._chunk(ChoiceDelta(), reason=finish_reason(event.reason))
            if self._includes_usage:
                yield data(self._of_choices([], usage_of(event.usage)))
            yield DONE

    def failed(self, error: Stream2LLMError) -> Iterator[str]:
        yield error_data(error, self._names)

    def whole(self, answer: Answer) -> ChatCompletion:
        choice = chat_completion.Choice(
            index=0,
            message=ChatCompletionMessage(role="assistant", content=answer.text),
            finish_reason=finish_reason(answer.finished.reason),
            logprobs=self._logprobs(chat_completion.ChoiceLogprobs, answer.logprobs),
        )
        return ChatCompletion(
            id=self._opening.id,
            object="chat.completion",
            created=self._opening.created_s,
            model=self._opening.model,
            choices=[choice],
            usage=usage_of(answer.finished.usage),
        )

    def _chunk(
        self,
        delta: ChoiceDelta,
        *,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: Literal["stop", "length"] | None = None,
    ) -> str:
        found = self._logprobs(chat_completion_chunk.ChoiceLogprobs, logprobs) if logprobs else None
        choice = chat_completion_chunk.Choice(
            index=0, delta=delta, finish_reason=reason, logprobs=found
        )
        return data(self._of_choices([choice]))

    def _of_choices(
        self, choices: list[chat_completion_chunk.Choice], usage: CompletionUsage | None = None
    ) -> ChatCompletionChunk:
        """All chunks have a field for the usage where the request asks for it, as OpenAI's."""
        last: dict[str, Any] = {"usage": usage} if self._includes_usage else {}
        return ChatCompletionChunk(
            id=self._opening.id,
            object="chat.completion.chunk",
            created=self._opening.created_s,
            model=self._opening.model,
            choices=choices,
            **last,
        )

    def _logprobs(self, kind: Any, positions: Sequence[TokenLogprobs]) -> Any:
        return kind(content=list(map(_entry, positions))) if self._includes_logprobs else None


def _entry(position: TokenLogprobs) -> ChatCompletionTokenLogprob:
    top = [TopLogprob(**entry_of(each)) for each in position.top]
    return ChatCompletionTokenLogprob(**entry_of(position.sampled), top_logprobs=top)
