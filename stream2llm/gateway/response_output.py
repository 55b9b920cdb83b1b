"""The output of a response, item by item: messages, reasoning, and calls of functions. Pure.

An item ends where another one begins. Those of a stream are those of the whole answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from openai.types import responses as oai
from openai.types.responses.response_output_text import Logprob, LogprobTopLogprob
from openai.types.responses.response_reasoning_item import Content as ReasoningContent
from pydantic import BaseModel

from stream2llm.api.events import Answer, TokenDelta
from stream2llm.api.token_step import TokenLogprobs
from stream2llm.gateway.forms import entry_of
from stream2llm.gateway.parsing import Content, Parsing, Part, Reasoning
from stream2llm.gateway.tool_calls import CallDelta

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class Piece(NamedTuple):
    """An event without its number."""

    kind: type[BaseModel]
    name: str
    fields: dict[str, Any]


class Output:
    """The items of one response: streamed by `begin`, `more` and `end`, or taken by `whole`."""

    def __init__(self, response_id: str, parsing: Parsing, *, includes_logprobs: bool) -> None:
        self._suffix = response_id.removeprefix("resp_")
        self._is_text = parsing.is_text
        self._parser = parsing.parser()
        self._includes_logprobs = includes_logprobs
        self._item: _Item | None = None
        # The items that have ended.
        self.items: list[BaseModel] = []

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens of the reasoning, at the end; None: not known."""
        return self._parser.num_reasoning_tokens

    def begin(self) -> Iterator[Piece]:
        """The events before the first token."""
        if self._is_text:
            yield from self._add(Content(""), ())

    def more(self, delta: TokenDelta) -> Iterator[Piece]:
        """The events for new tokens."""
        parts: Sequence[Part] = self._parser.feed(delta)
        if self._is_text and delta.logprobs and not parts:
            parts = [Content("")]
        for part in parts:
            yield from self._add(part, delta.logprobs)

    def end(self, status: ItemStatus) -> Iterator[Piece]:
        """The events after the last token."""
        for part in self._parser.end():
            yield from self._add(part, ())
        yield from self._end_item(status)

    def whole(self, answer: Answer, status: ItemStatus) -> Iterator[Piece]:
        """Takes a whole answer; the same events, of which each part is one."""
        for part in self._parser.whole(answer):
            yield from self._add(part, answer.logprobs)
        yield from self._end_item(status)

    def _add(self, part: Part, logprobs: Sequence[TokenLogprobs]) -> Iterator[Piece]:
        item = self._item
        if item is None or not item.takes(part):
            yield from self._end_item("completed")
            item = self._item = self._item_for(part)
            yield _added(item.item("in_progress"), item.index)
            yield from item.begin()
        yield from item.add(part, logprobs if self._includes_logprobs else ())

    def _end_item(self, status: ItemStatus) -> Iterator[Piece]:
        item, self._item = self._item, None
        if item is not None:
            yield from item.end()
            done = item.item(status)
            self.items.append(done)
            yield _done(done, item.index)

    def _item_for(self, part: Part) -> _Item:
        index = len(self.items)
        if isinstance(part, CallDelta):
            return _Call(self._suffix, index, part)
        if isinstance(part, Reasoning):
            return _Reasoning(f"rs_{self._suffix}_{index}", index)
        return _Message(f"msg_{self._suffix}_{index}", index)


class _Item(Protocol):
    """One item of the output, from its beginning to its end."""

    # In the output, from 0.
    index: int

    def takes(self, part: Part) -> bool:
        """Whether it goes on with this part."""

    def begin(self) -> Iterable[Piece]:
        """The events after that of the item itself."""

    def add(self, part: Any, logprobs: Sequence[TokenLogprobs]) -> Iterable[Piece]:
        """The events for a part that it takes."""

    def end(self) -> Iterable[Piece]:
        """The events before that of the item itself."""

    def item(self, status: ItemStatus) -> BaseModel:
        """As far as it has come."""


class _TextItem:
    """An item whose content is one text; a subclass says what that looks like in an event."""

    def __init__(self, item_id: str, index: int) -> None:
        self.index = index
        self._id = item_id
        self._place: dict[str, Any] = {
            "item_id": item_id,
            "output_index": index,
            "content_index": 0,
        }
        self._text = ""

    def begin(self) -> Iterable[Piece]:
        fields = {"part": self._content(), **self._place}
        yield Piece(oai.ResponseContentPartAddedEvent, "response.content_part.added", fields)

    def _content_done(self) -> Piece:
        fields = {"part": self._content(), **self._place}
        return Piece(oai.ResponseContentPartDoneEvent, "response.content_part.done", fields)

    def _content(self) -> Any:
        raise NotImplementedError


class _Message(_TextItem):
    """One text."""

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self._logprobs: list[Logprob] = []

    def takes(self, part: Part) -> bool:
        return isinstance(part, Content)

    def add(self, part: Content, logprobs: Sequence[TokenLogprobs]) -> Iterable[Piece]:
        entries = list(map(_entry, logprobs))
        self._text += part.text
        self._logprobs += entries
        if part.text or entries:
            fields = {"delta": part.text, "logprobs": _plain(entries), **self._place}
            yield Piece(oai.ResponseTextDeltaEvent, "response.output_text.delta", fields)

    def end(self) -> Iterable[Piece]:
        fields = {"text": self._text, "logprobs": _plain(self._logprobs), **self._place}
        yield Piece(oai.ResponseTextDoneEvent, "response.output_text.done", fields)
        yield self._content_done()

    def item(self, status: ItemStatus) -> BaseModel:
        has_begun = status != "in_progress"
        return oai.ResponseOutputMessage(
            id=self._id,
            type="message",
            role="assistant",
            status=status,
            content=[self._content()] if has_begun else [],
        )

    def _content(self) -> oai.ResponseOutputText:
        return oai.ResponseOutputText(
            type="output_text", text=self._text, annotations=[], logprobs=list(self._logprobs)
        )


class _Reasoning(_TextItem):
    """The text of a model's reasoning."""

    def takes(self, part: Part) -> bool:
        return isinstance(part, Reasoning)

    def add(self, part: Reasoning, logprobs: Sequence[TokenLogprobs]) -> Iterable[Piece]:
        self._text += part.text
        fields = {"delta": part.text, **self._place}
        yield Piece(oai.ResponseReasoningTextDeltaEvent, "response.reasoning_text.delta", fields)

    def end(self) -> Iterable[Piece]:
        fields = {"text": self._text, **self._place}
        yield Piece(oai.ResponseReasoningTextDoneEvent, "response.reasoning_text.done", fields)
        yield self._content_done()

    def item(self, status: ItemStatus) -> BaseModel:
        text = ReasoningContent(type="reasoning_text", text=self._text)
        content = [] if status == "in_progress" else [text]
        return oai.ResponseReasoningItem(
            id=self._id, type="reasoning", summary=[], content=content, status=status
        )

    def _content(self) -> dict[str, Any]:
        """For events, each of which has a type of its own for it."""
        return {"type": "reasoning_text", "text": self._text}


class _Call:
    """The call of one function."""

    def __init__(self, suffix: str, index: int, first: CallDelta) -> None:
        self.index = index
        self._call = first.index
        self._name = first.name or ""
        self._arguments = ""
        self._suffix = f"{suffix}_{index}"
        self._place: dict[str, Any] = {"item_id": f"fc_{self._suffix}", "output_index": index}

    def takes(self, part: Part) -> bool:
        return isinstance(part, CallDelta) and part.index == self._call

    def begin(self) -> Iterable[Piece]:
        return ()

    def add(self, part: CallDelta, logprobs: Sequence[TokenLogprobs]) -> Iterable[Piece]:
        self._arguments += part.arguments
        if part.arguments:
            fields = {"delta": part.arguments, **self._place}
            yield Piece(
                oai.ResponseFunctionCallArgumentsDeltaEvent,
                "response.function_call_arguments.delta",
                fields,
            )

    def end(self) -> Iterable[Piece]:
        fields = {"arguments": self._arguments, "name": self._name, **self._place}
        yield Piece(
            oai.ResponseFunctionCallArgumentsDoneEvent,
            "response.function_call_arguments.done",
            fields,
        )

    def item(self, status: ItemStatus) -> BaseModel:
        return oai.ResponseFunctionToolCall(
            type="function_call",
            id=f"fc_{self._suffix}",
            call_id=f"call_{self._suffix}",
            name=self._name,
            arguments=self._arguments,
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


def _plain(entries: Sequence[Logprob]) -> list[dict[str, Any]]:
    """For events, whose types are others of the same fields."""
    return [each.model_dump() for each in entries]
