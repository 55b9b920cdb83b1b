"""Answers of /v1/responses: one message of one text, as an object or as its events. Pure.

created, in_progress, output_item.added, content_part.added, output_text.delta ...,
output_text.done, content_part.done, output_item.done, completed (or incomplete, failed)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from openai.types import responses as oai
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_output_text import Logprob, LogprobTopLogprob
from openai.types.responses.response_usage import (
    InputTokensDetails,
    OutputTokensDetails,
    ResponseUsage,
)
from pydantic import BaseModel

from stream2llm.api.errors import OverloadedError, Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta, Usage
from stream2llm.api.token_step import FinishReason, TokenLogprobs
from stream2llm.client.stream import Gathered
from stream2llm.gateway.forms import Opening, entry_of
from stream2llm.gateway.response_requests import ResponsesRequest

ItemStatus = Literal["in_progress", "completed", "incomplete"]
# Where the one text stands.
_PLACE: dict[str, Any] = {"output_index": 0, "content_index": 0}


class ResponseForm:
    """One response."""

    def __init__(self, request: ResponsesRequest, opening: Opening) -> None:
        self._request = request
        self._opening = opening
        self._item_id = f"msg_{opening.id.removeprefix('resp_')}"
        self._includes_logprobs = request.includes_logprobs
        self._gathered = Gathered()
        self._num_events = 0

    def begin(self) -> Iterator[str]:
        response = self._response("in_progress")
        yield self._event(oai.ResponseCreatedEvent, "response.created", response=response)
        yield self._event(oai.ResponseInProgressEvent, "response.in_progress", response=response)
        item = self._item("", (), "in_progress").model_copy(update={"content": []})
        yield self._event(
            oai.ResponseOutputItemAddedEvent,
            "response.output_item.added",
            item=item,
            output_index=0,
        )
        yield self._event(
            oai.ResponseContentPartAddedEvent,
            "response.content_part.added",
            item_id=self._item_id,
            part=self._text("", ()),
            **_PLACE,
        )

    def pieces(self, event: Event) -> Iterator[str]:
        self._gathered.add(event)
        if isinstance(event, TokenDelta) and (event.text or event.logprobs):
            yield self._event(
                oai.ResponseTextDeltaEvent,
                "response.output_text.delta",
                item_id=self._item_id,
                delta=event.text,
                logprobs=self._plain_logprobs(event.logprobs),
                **_PLACE,
            )
        elif isinstance(event, Finished):
            yield from self._end(self._gathered.answer())

    def failed(self, error: Stream2LLMError) -> Iterator[str]:
        code = "rate_limit_exceeded" if isinstance(error, OverloadedError) else "server_error"
        response = self._response("failed", error={"code": code, "message": error.message})
        yield self._event(oai.ResponseFailedEvent, "response.failed", response=response)

    def whole(self, answer: Answer) -> oai.Response:
        status = _status(answer)
        item = self._item(answer.text, answer.logprobs, status)
        details = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        return self._response(
            status,
            output=[item],
            usage=usage_of(answer.finished.usage),
            incomplete_details=details,
        )

    def _end(self, answer: Answer) -> Iterator[str]:
        yield self._event(
            oai.ResponseTextDoneEvent,
            "response.output_text.done",
            item_id=self._item_id,
            text=answer.text,
            logprobs=self._plain_logprobs(answer.logprobs),
            **_PLACE,
        )
        yield self._event(
            oai.ResponseContentPartDoneEvent,
            "response.content_part.done",
            item_id=self._item_id,
            part=self._text(answer.text, answer.logprobs),
            **_PLACE,
        )
        item = self._item(answer.text, answer.logprobs, _status(answer))
        yield self._event(
            oai.ResponseOutputItemDoneEvent, "response.output_item.done", item=item, output_index=0
        )
        response = self.whole(answer)
        if _status(answer) == "completed":
            yield self._event(oai.ResponseCompletedEvent, "response.completed", response=response)
        else:
            yield self._event(oai.ResponseIncompleteEvent, "response.incomplete", response=response)

    def _event(self, kind: type[BaseModel], name: str, **fields: Any) -> str:
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
                "parallel_tool_calls": False,
                "temperature": asked.temperature,
                "text": {"format": _format_of(asked)},
                "tool_choice": "none",
                "tools": [],
                "top_p": asked.top_p,
                "truncation": "disabled",
                "usage": None,
                "user": asked.user,
                **fields,
            }
        )

    def _item(
        self, text: str, logprobs: Sequence[TokenLogprobs], status: ItemStatus
    ) -> oai.ResponseOutputMessage:
        return oai.ResponseOutputMessage(
            id=self._item_id,
            type="message",
            role="assistant",
            status=status,
            content=[self._text(text, logprobs)],
        )

    def _text(self, text: str, logprobs: Sequence[TokenLogprobs]) -> oai.ResponseOutputText:
        return oai.ResponseOutputText(
            type="output_text", text=text, annotations=[], logprobs=self._logprobs(logprobs)
        )

    def _logprobs(self, positions: Sequence[TokenLogprobs]) -> list[Logprob]:
        return list(map(_entry, positions)) if self._includes_logprobs else []

    def _plain_logprobs(self, positions: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        """For events, whose types are others of the same fields."""
        return [each.model_dump() for each in self._logprobs(positions)]


def usage_of(usage: Usage) -> ResponseUsage:
    """The tokens of a response; cached are those that prefill has found instead of computing."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.reused_tokens, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _format_of(request: ResponsesRequest) -> dict[str, Any]:
    given = request.text and request.text.format
    return given.model_dump(by_alias=True, exclude_unset=True) if given else {"type": "text"}


def _status(answer: Answer) -> Literal["completed", "incomplete"]:
    return "incomplete" if answer.finished.reason is FinishReason.LENGTH else "completed"


def _entry(position: TokenLogprobs) -> Logprob:
    top = [LogprobTopLogprob(**entry_of(each)) for each in position.top]
    return Logprob(**entry_of(position.sampled), top_logprobs=top)
