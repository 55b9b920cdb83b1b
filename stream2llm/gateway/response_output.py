"""The output of a response: a message with one text, or calls of functions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from openai.types import responses as oai
from openai.types.responses.response_output_text import Logprob, LogprobTopLogprob
from pydantic import BaseModel

from stream2llm.api.events import Answer, TokenDelta
from stream2llm.api.token_step import TokenLogprobs
from stream2llm.gateway.forms import entry_of
from stream2llm.gateway.tool_calls import Call, CallReader, calls_in, gathered
from stream2llm.gateway.tools import ToolUse

ItemStatus = Literal["in_progress", "completed", "incomplete"]
# Where the one text stands.
_PLACE: dict[str, Any] = {"output_index": 0, "content_index": 0}


class Piece(NamedTuple):
    """An event without its number."""

    kind: type[BaseModel]
    name: str
    fields: dict[str, Any]


class Output(Protocol):
    """The items of one response."""

    def begin(self) -> Iterator[Piece]:
        """The events before the first token."""

    def more(self, delta: TokenDelta) -> Iterator[Piece]:
        """The events for new tokens."""

    def end(self, answer: Answer, status: ItemStatus) -> Iterator[Piece]:
        """The events after the last token."""

    def items(self, answer: Answer, status: ItemStatus) -> Sequence[BaseModel]:
        """The items of the whole answer."""


class MessageOutput:
    """One message of one text."""

    def __init__(self, response_id: str, *, includes_logprobs: bool) -> None:
        self._item_id = f"msg_{response_id.removeprefix('resp_')}"
        self._includes_logprobs = includes_logprobs

    def begin(self) -> Iterator[Piece]:
        item = self._item("", (), "in_progress").model_copy(update={"content": []})
        yield _added(item, 0)
        yield Piece(
            oai.ResponseContentPartAddedEvent,
            "response.content_part.added",
            {"item_id": self._item_id, "part": self._text("", ()), **_PLACE},
        )

    def more(self, delta: TokenDelta) -> Iterator[Piece]:
        if delta.text or delta.logprobs:
            fields = {"delta": delta.text, "logprobs": self._plain_logprobs(delta.logprobs)}
            yield Piece(
                oai.ResponseTextDeltaEvent,
                "response.output_text.delta",
                {"item_id": self._item_id, **fields, **_PLACE},
            )

    def end(self, answer: Answer, status: ItemStatus) -> Iterator[Piece]:
        fields = {"text": answer.text, "logprobs": self._plain_logprobs(answer.logprobs)}
        yield Piece(
            oai.ResponseTextDoneEvent,
            "response.output_text.done",
            {"item_id": self._item_id, **fields, **_PLACE},
        )
        part = self._text(answer.text, answer.logprobs)
        yield Piece(
            oai.ResponseContentPartDoneEvent,
            "response.content_part.done",
            {"item_id": self._item_id, "part": part, **_PLACE},
        )
        yield _done(self._item(answer.text, answer.logprobs, status), 0)

    def items(self, answer: Answer, status: ItemStatus) -> Sequence[BaseModel]:
        return [self._item(answer.text, answer.logprobs, status)]

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


class CallsOutput:
    """Calls of functions, each an item."""

    def __init__(self, response_id: str, use: ToolUse, reader: CallReader) -> None:
        self._suffix = response_id.removeprefix("resp_")
        self._use = use
        self._reader = reader
        self._calls: list[Call] = []

    def begin(self) -> Iterator[Piece]:
        return iter(())

    def more(self, delta: TokenDelta) -> Iterator[Piece]:
        for each in self._reader.feed(delta.text):
            if each.name is not None:
                yield from self._last_done("completed")
                begun = self._item(each.index, Call(each.name, ""), "in_progress")
                yield _added(begun, each.index)
            self._calls = gathered(self._calls, [each])
            if each.arguments:
                yield Piece(
                    oai.ResponseFunctionCallArgumentsDeltaEvent,
                    "response.function_call_arguments.delta",
                    {"delta": each.arguments, **self._place(each.index)},
                )

    def end(self, answer: Answer, status: ItemStatus) -> Iterator[Piece]:
        return self._last_done(status)

    def items(self, answer: Answer, status: ItemStatus) -> Sequence[BaseModel]:
        calls = calls_in(answer.text, self._use)
        last = len(calls) - 1
        return [
            self._item(index, call, status if index == last else "completed")
            for index, call in enumerate(calls)
        ]

    def _last_done(self, status: ItemStatus) -> Iterator[Piece]:
        if not self._calls:
            return
        index, call = len(self._calls) - 1, self._calls[-1]
        yield Piece(
            oai.ResponseFunctionCallArgumentsDoneEvent,
            "response.function_call_arguments.done",
            {"arguments": call.arguments, "name": call.name, **self._place(index)},
        )
        yield _done(self._item(index, call, status), index)

    def _place(self, index: int) -> dict[str, Any]:
        return {"item_id": f"fc_{self._suffix}_{index}", "output_index": index}

    def _item(self, index: int, call: Call, status: ItemStatus) -> oai.ResponseFunctionToolCall:
        return oai.ResponseFunctionToolCall(
            type="function_call",
            id=f"fc_{self._suffix}_{index}",
            call_id=f"call_{self._suffix}_{index}",
            name=call.name,
            arguments=call.arguments,
            status=status,
        )


def _added(item: BaseModel, index: int) -> Piece:
    fields = {"item": item, "output_index": index}
    return Piece(oai.ResponseOutputItemAddedEvent, "response.output_item.added", fields)


def _done(item: BaseModel, index: int) -> Piece:
    fields = {"item": item, "output_index": index}
    return Piece(oai.ResponseOutputItemDoneEvent, "response.output_item.done", fields)


def _entry(position: TokenLogprobs) -> Logprob:
    top = [LogprobTopLogprob(**entry_of(each)) for each in position.top]
    return Logprob(**entry_of(position.sampled), top_logprobs=top)
