"""Answers of /v1/chat/completions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_chunk import (
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from openai.types.chat.chat_completion_message_function_tool_call import Function
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta
from stream2llm.api.token_step import FinishReason, TokenLogprobs
from stream2llm.gateway.forms import (
    Opening,
    StreamEnd,
    data,
    entry_of,
    error_data,
    extension_of,
    finish_reason,
    usage_of,
)
from stream2llm.gateway.parsing import Content, ParsedAnswer, Part
from stream2llm.gateway.requests import ChatRequest
from stream2llm.gateway.tool_calls import CallDelta
from stream2llm.gateway.tools import Calls

Reason = Literal["stop", "length", "tool_calls"]


class ChatForm:
    """One chat completion."""

    def __init__(self, request: ChatRequest, opening: Opening) -> None:
        self._opening = opening
        self._names = request.parameter_names()
        options = request.stream_options
        self._end = StreamEnd(
            request.num_choices, includes_usage=bool(options and options.include_usage)
        )
        self._includes_logprobs = bool(request.logprobs)
        self._calls = request.tool_use().calls
        # One for each choice.
        self._parsers = [opening.parsing.parser() for _ in range(request.num_choices)]
        # The choices with calls.
        self._calling: set[int] = set()

    def begin(self) -> Iterable[str]:
        content = "" if self._opening.parsing.is_text else None
        for index in range(len(self._parsers)):
            yield self._chunk(index, ChoiceDelta(role="assistant", content=content))

    def pieces(self, event: Event) -> Iterator[str]:
        if isinstance(event, TokenDelta):
            parts = self._parsers[event.index].feed(event)
            yield from self._parts(event.index, parts, event.logprobs)
        elif isinstance(event, Finished):
            index, parser = event.index, self._parsers[event.index]
            yield from self._parts(index, parser.end())
            reason = self._reason(event.reason, has_calls=index in self._calling)
            yield self._chunk(index, ChoiceDelta(), reason=reason, more=extension_of(event))
            yield from self._end.finished(
                index, event.usage, self._usage_chunk, parser.num_reasoning_tokens
            )

    def _parts(
        self, index: int, parts: Sequence[Part], logprobs: Sequence[TokenLogprobs] = ()
    ) -> Iterator[str]:
        """What new tokens add; an empty delta where there are only log-probabilities."""
        if logprobs and not parts:
            yield self._chunk(index, ChoiceDelta(), logprobs=logprobs)
        for part in parts:
            yield self._chunk(index, self._delta(index, part), logprobs=logprobs)
            logprobs = ()

    def _usage_chunk(self, usage: CompletionUsage) -> str:
        return data(self._of_choices([], usage))

    def failed(self, error: Stream2LLMError) -> Iterator[str]:
        yield error_data(error, self._names)

    def whole(self, *answers: Answer) -> ChatCompletion:
        return ChatCompletion(
            id=self._opening.id,
            object="chat.completion",
            created=self._opening.created_s,
            model=self._opening.model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage_of(
                [answer.finished.usage for answer in answers], self._num_reasoning_tokens()
            ),
            **extension_of(*(answer.finished for answer in answers)),
        )

    def _num_reasoning_tokens(self) -> int | None:
        counts = [parser.num_reasoning_tokens for parser in self._parsers]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _choice(self, index: int, answer: Answer) -> chat_completion.Choice:
        parsed = ParsedAnswer.of(self._parsers[index].whole(answer))
        return chat_completion.Choice(
            index=index,
            message=self._message(index, parsed),
            finish_reason=self._reason(answer.finished.reason, has_calls=bool(parsed.calls)),
            logprobs=self._logprobs(chat_completion.ChoiceLogprobs, answer.logprobs),
        )

    def _message(self, choice: int, parsed: ParsedAnswer) -> ChatCompletionMessage:
        more: dict[str, Any] = {}
        if parsed.reasoning is not None:
            more["reasoning"] = parsed.reasoning
        calls = [
            ChatCompletionMessageFunctionToolCall(
                id=self._call_id(choice, index),
                type="function",
                function=Function(name=call.name, arguments=call.arguments),
            )
            for index, call in enumerate(parsed.calls)
        ]
        if calls or self._calls in (Calls.REQUIRED, Calls.NAMED):
            more["tool_calls"] = calls
        return ChatCompletionMessage(role="assistant", content=parsed.content, **more)

    def _delta(self, index: int, part: Part) -> ChoiceDelta:
        """As OpenAI's; `reasoning` is vLLM's."""
        if isinstance(part, CallDelta):
            self._calling.add(index)
            return ChoiceDelta(tool_calls=[self._call(index, part)])
        if isinstance(part, Content):
            return ChoiceDelta(content=part.text)
        more: dict[str, Any] = {"reasoning": part.text}
        return ChoiceDelta(**more)

    def _call(self, choice: int, delta: CallDelta) -> ChoiceDeltaToolCall:
        """As OpenAI's, the first delta of a call has its id and name, and the others have not."""
        if delta.name is None:
            function = ChoiceDeltaToolCallFunction(arguments=delta.arguments)
            return ChoiceDeltaToolCall(index=delta.index, function=function)
        return ChoiceDeltaToolCall(
            index=delta.index,
            id=self._call_id(choice, delta.index),
            type="function",
            function=ChoiceDeltaToolCallFunction(name=delta.name, arguments=delta.arguments),
        )

    def _call_id(self, choice: int, index: int) -> str:
        return f"call_{self._opening.id.removeprefix('chatcmpl-')}_{choice}_{index}"

    def _reason(self, reason: FinishReason, *, has_calls: bool) -> Reason:
        """As OpenAI's, the end of a call that was asked for by its name is a stop."""
        found = finish_reason(reason)
        calls = self._calls is Calls.REQUIRED or (self._calls is Calls.AUTO and has_calls)
        return "tool_calls" if calls and found == "stop" else found

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        *,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: Reason | None = None,
        more: Mapping[str, Any] = {},
    ) -> str:
        found = self._logprobs(chat_completion_chunk.ChoiceLogprobs, logprobs) if logprobs else None
        choice = chat_completion_chunk.Choice(
            index=index, delta=delta, finish_reason=reason, logprobs=found
        )
        return data(self._of_choices([choice], more=more))

    def _of_choices(
        self,
        choices: list[chat_completion_chunk.Choice],
        usage: CompletionUsage | None = None,
        more: Mapping[str, Any] = {},
    ) -> ChatCompletionChunk:
        """All chunks have a field for the usage where the request asks for it, as OpenAI's."""
        last: dict[str, Any] = {"usage": usage} if self._end.includes_usage else {}
        return ChatCompletionChunk(
            id=self._opening.id,
            object="chat.completion.chunk",
            created=self._opening.created_s,
            model=self._opening.model,
            choices=choices,
            **last,
            **more,
        )

    def _logprobs(self, kind: Any, positions: Sequence[TokenLogprobs]) -> Any:
        return kind(content=list(map(_entry, positions))) if self._includes_logprobs else None


def _entry(position: TokenLogprobs) -> ChatCompletionTokenLogprob:
    top = [TopLogprob(**entry_of(each)) for each in position.top]
    return ChatCompletionTokenLogprob(**entry_of(position.sampled), top_logprobs=top)
