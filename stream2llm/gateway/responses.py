"""Answers of /v1/responses, as an object or as its events. Pure.

created, in_progress, those of the output, completed (or incomplete, failed). Those of a message:
output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done,
output_item.done; of reasoning the same with reasoning_text; of each call: output_item.added,
function_call_arguments.delta ..., function_call_arguments.done, output_item.done
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from openai.types import responses as oai
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_usage import (
    InputTokensDetails,
    OutputTokensDetails,
    ResponseUsage,
)
from pydantic import BaseModel

from stream2llm.api.errors import OverloadedError, Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta, Usage
from stream2llm.api.token_step import FinishReason
from stream2llm.client.stream import Gathered
from stream2llm.gateway.forms import Opening, extension_of
from stream2llm.gateway.response_output import Output, Piece
from stream2llm.gateway.response_requests import ResponsesRequest


class ResponseForm:
    """One response."""

    def __init__(self, request: ResponsesRequest, opening: Opening) -> None:
        self._request = request
        self._opening = opening
        self._output = Output(
            opening.id, opening.parsing, includes_logprobs=request.includes_logprobs
        )
        self._is_streamed = False
        # The events at the end of the output, once it is complete.
        self._last: list[Piece] | None = None
        self._gathered = Gathered()
        self._num_events = 0

    def begin(self) -> Iterator[str]:
        self._is_streamed = True
        response = self._response("in_progress")
        yield self._event(oai.ResponseCreatedEvent, "response.created", response=response)
        yield self._event(oai.ResponseInProgressEvent, "response.in_progress", response=response)
        yield from self._events(self._output.begin())

    def pieces(self, event: Event) -> Iterator[str]:
        self._gathered.add(event)
        if isinstance(event, TokenDelta):
            yield from self._events(self._output.more(event))
        elif isinstance(event, Finished):
            yield from self._end(self._gathered.answer())

    def failed(self, error: Stream2LLMError) -> Iterator[str]:
        code = "rate_limit_exceeded" if isinstance(error, OverloadedError) else "server_error"
        response = self._response("failed", error={"code": code, "message": error.message})
        yield self._event(oai.ResponseFailedEvent, "response.failed", response=response)

    def complete(self, answer: Answer) -> list[Piece]:
        """Takes the whole answer, of which a stream has had the tokens; once, however often.

        Returns the events at the end of the output. Raises InternalError where the answer cannot
        be parsed.
        """
        if self._last is None:
            output, status = self._output, _status(answer)
            pieces = output.end(status) if self._is_streamed else output.whole(answer, status)
            self._last = list(pieces)
        return self._last

    def whole(self, *answers: Answer) -> oai.Response:
        (answer,) = answers
        self.complete(answer)
        status = _status(answer)
        details = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        return self._response(
            status,
            output=self._output.items,
            usage=usage_of(answer.finished.usage, self._output.num_reasoning_tokens or 0),
            incomplete_details=details,
            **self._extension(answer.finished),
        )

    def _extension(self, finished: Finished) -> dict[str, Any]:
        """Our object of a response that is answered."""
        return extension_of(finished)

    def _end(self, answer: Answer) -> Iterator[str]:
        yield from self._events(self.complete(answer))
        response = self.whole(answer)
        if response.status == "completed":
            yield self._event(oai.ResponseCompletedEvent, "response.completed", response=response)
        else:
            yield self._event(oai.ResponseIncompleteEvent, "response.incomplete", response=response)

    def _events(self, pieces: Iterable[Piece]) -> Iterator[str]:
        for kind, name, fields in pieces:
            yield self._event(kind, name, **fields)

    def _event(self, kind: type[BaseModel], name: str, /, **fields: Any) -> str:
        event = kind(type=name, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return self._written(event, name)

    def _written(self, event: BaseModel, name: str) -> str:
        return (
            f"event: {name}\ndata: {event.model_dump_json(exclude_unset=True, by_alias=True)}\n\n"
        )

    def _response(self, status: str, **fields: Any) -> oai.Response:
        asked = self._request
        return oai.Response.model_validate(
            {
                "id": self._opening.id,
                "object": "response",
                "created_at": self._opening.created_s,
                "model": self._opening.model,
                "status": status,
                "output": [],
                "error": None,
                "incomplete_details": None,
                "instructions": asked.instructions,
                "max_output_tokens": asked.max_output_tokens,
                "metadata": asked.metadata or {},
                "parallel_tool_calls": asked.tool_use().is_parallel,
                "temperature": asked.temperature,
                "text": {"format": _format_of(asked)},
                "tool_choice": _dumped(asked.tool_choice or ("auto" if asked.tools else "none")),
                "tools": [_dumped(each) for each in asked.tools or ()],
                "top_p": asked.top_p,
                "truncation": "disabled",
                "usage": None,
                "user": asked.user,
                **fields,
            }
        )


def usage_of(usage: Usage, num_reasoning_tokens: int = 0) -> ResponseUsage:
    """The tokens of a response; cached are those that prefill has found instead of computing."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.reused_tokens, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=num_reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _format_of(request: ResponsesRequest) -> dict[str, Any]:
    given = request.text and request.text.format
    return _dumped(given) if given else {"type": "text"}


def _dumped(given: BaseModel | str) -> Any:
    """A parameter as it was given."""
    return given if isinstance(given, str) else given.model_dump(by_alias=True, exclude_unset=True)


def _status(answer: Answer) -> Literal["completed", "incomplete"]:
    return "incomplete" if answer.finished.reason is FinishReason.LENGTH else "completed"
