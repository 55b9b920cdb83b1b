"""What the text of an answer is: content, reasoning, and calls of tools. Pure.

Each answer has a parser of its own, which takes it as it comes, or as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from stream2llm.api.events import Answer, TokenDelta
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.gateway.tool_calls import Call, CallDelta, CallReader, gathered, reader_for
from stream2llm.gateway.tools import ToolUse


@dataclass(frozen=True, slots=True)
class Content:
    """More of the text that is the answer proper."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the text with which the model has prepared its answer."""

    text: str


Part = Content | Reasoning | CallDelta


class AnswerParser(Protocol):
    """Parses one answer: either `feed` and `end`, or `whole`."""

    def feed(self, delta: TokenDelta) -> Sequence[Part]:
        """Takes the next tokens; raises InternalError where that fails."""

    def end(self) -> Sequence[Part]:
        """What has been held back until the end; raises as `feed`."""

    def whole(self, answer: Answer) -> Sequence[Part]:
        """The parts of a whole answer; raises as `feed`."""

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens of the reasoning, at the end; None: not known."""


@dataclass(frozen=True, slots=True)
class Parsing:
    """How the answers to one request are parsed."""

    parser: Callable[[], AnswerParser]
    # Whether an answer is content alone.
    is_text: bool = False
    # What the parsers need of the answer, beside what the request asks for.
    keeps_special_tokens: bool = False
    constraint: StructuredOutput | None = None

    def sampling(self, asked: SamplingParameters) -> SamplingParameters:
        """How answers are sampled so that they can be parsed."""
        if self.keeps_special_tokens:
            asked = replace(asked, skip_special_tokens=False)
        return (
            asked if self.constraint is None else replace(asked, structured_output=self.constraint)
        )


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The parts of a whole answer, put together."""

    # None: there was none.
    content: str | None = None
    reasoning: str | None = None
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> ParsedAnswer:
        """Puts them together in their order."""
        parts = list(parts)
        calls = gathered([], [part for part in parts if isinstance(part, CallDelta)])
        return cls(_text_of(parts, Content), _text_of(parts, Reasoning), calls)


def _text_of(parts: Iterable[Part], kind: type[Content | Reasoning]) -> str | None:
    texts = [part.text for part in parts if isinstance(part, kind)]
    return "".join(texts) if texts else None


class _Text:
    """All of an answer is content."""

    num_reasoning_tokens = None

    def feed(self, delta: TokenDelta) -> Sequence[Part]:
        return [Content(delta.text)] if delta.text else []

    def end(self) -> Sequence[Part]:
        return []

    def whole(self, answer: Answer) -> Sequence[Part]:
        return [Content(answer.text)]


class _Calls:
    """All content of an answer is calls, by its structured output."""

    def __init__(self, parser: AnswerParser, reader: CallReader) -> None:
        """`parser` finds the content."""
        self._parser = parser
        self._reader = reader

    @property
    def num_reasoning_tokens(self) -> int | None:
        return self._parser.num_reasoning_tokens

    def feed(self, delta: TokenDelta) -> Sequence[Part]:
        return self._read(self._parser.feed(delta))

    def end(self) -> Sequence[Part]:
        return self._read(self._parser.end())

    def whole(self, answer: Answer) -> Sequence[Part]:
        return self._read(self._parser.whole(answer))

    def _read(self, parts: Sequence[Part]) -> Sequence[Part]:
        read: list[Part] = []
        for part in parts:
            read += self._reader.feed(part.text) if isinstance(part, Content) else [part]
        return read


TEXT = Parsing(_Text, is_text=True)


def with_calls(parsing: Parsing, use: ToolUse) -> Parsing:
    """The parsing where all content has to be calls, if `use` asks for that."""
    if reader_for(use) is None:
        return parsing

    def parser() -> AnswerParser:
        reader = reader_for(use)
        assert reader is not None
        return _Calls(parsing.parser(), reader)

    return replace(parsing, parser=parser, is_text=False)
