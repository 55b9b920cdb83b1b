"""One answer, parsed by one of vLLM's parsers: its results, translated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stream2llm.api.errors import InternalError, Stream2LLMError
from stream2llm.api.events import Answer, TokenDelta
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.gateway.parsing import Content, ParsedAnswer, Part, Reasoning
from stream2llm.gateway.tool_calls import CallDelta

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AskedParsing:
    """What has to be parsed out of the answers to one request."""

    # Whether there may be calls, of which of `tools`, in the form of a chat.
    has_calls: bool
    tools: tuple[dict[str, Any], ...]
    # Whether there may be several.
    is_parallel: bool
    # Whether there may be reasoning, and whether it is shown.
    has_reasoning: bool
    includes_reasoning: bool
    # What the chat template is given beside the conversation.
    chat_template_kwargs: dict[str, Any]
    # What the template has written behind the conversation.
    prompt_end: tuple[int, ...]
    # What the answer must look like behind its reasoning, and the parameter that says it.
    constraint: StructuredOutput | None = None
    constrained_by: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningEnd:
    """What a model writes where its reasoning ends."""

    text: str
    # None: the text is no token of its own.
    token_id: int | None


class VllmAnswerParser:
    """One answer, parsed by vLLM."""

    def __init__(self, make: Callable[[], Any], request: Any, asked: AskedParsing) -> None:
        """`make` makes vLLM's parser, which parses one answer once."""
        self._make = make
        self._parser = make()
        self._request = request
        self._asked = asked
        # The answer so far, and what has been found in it.
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._parts: list[Part] = []
        # By vLLM's index of a call, ours.
        self._indices: dict[int, int] = {}

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Tokens of the reasoning, as far as vLLM's parser counts them; None without reasoning."""
        if not self._asked.has_reasoning:
            return None
        return guarded(lambda: int(self._parser.count_reasoning_tokens(self._token_ids)))

    def feed(self, delta: TokenDelta) -> Sequence[Part]:
        """Takes the next tokens; raises InternalError where vLLM's parser fails."""
        self._text.append(delta.text)
        self._token_ids += delta.token_ids
        parts = self._parsed(delta.text, list(delta.token_ids), finished=False)
        self._parts += parts
        return parts

    def end(self) -> Sequence[Part]:
        """What vLLM has held back; raises as `feed`."""
        last = self._parsed("", [], finished=True)
        streamed = [*self._parts, *last]
        if any(isinstance(part, CallDelta) for part in streamed):
            return last
        whole = self._whole(self._make(), "".join(self._text))
        rest = lost_content(ParsedAnswer.of(streamed), ParsedAnswer.of(whole))
        return [*last, Content(rest)] if rest else last

    def whole(self, answer: Answer) -> Sequence[Part]:
        """The parts of a whole answer; raises as `feed`."""
        self._token_ids = list(answer.token_ids)
        return self._whole(self._parser, answer.text)

    def _whole(self, parser: Any, text: str) -> Sequence[Part]:
        reasoning, content, calls = guarded(
            lambda: parser.parse(
                text,
                self._request,
                enable_auto_tools=self._asked.has_calls,
                model_output_token_ids=self._token_ids,
            )
        )
        return [*self._texts(reasoning, content), *self._whole_calls(calls or ())]

    def _parsed(self, text: str, token_ids: list[int], *, finished: bool) -> Sequence[Part]:
        delta = guarded(
            lambda: self._parser.parse_delta(
                text,
                token_ids,
                self._request,
                prompt_token_ids=list(self._asked.prompt_end),
                finished=finished,
            )
        )
        if delta is None:
            return []
        calls = guarded(lambda: list(self._call_deltas(delta.tool_calls)))
        return [*self._texts(delta.reasoning, delta.content), *calls]

    def _texts(self, reasoning: str | None, content: str | None) -> Iterator[Part]:
        if reasoning and self._asked.includes_reasoning:
            yield Reasoning(reasoning)
        if content:
            yield Content(content)

    def _whole_calls(self, calls: Sequence[Any]) -> Iterator[CallDelta]:
        allowed = calls if self._asked.is_parallel else calls[:1]
        for index, call in enumerate(allowed):
            yield CallDelta(index, call.name, call.arguments)

    def _call_deltas(self, calls: Sequence[Any]) -> Iterator[CallDelta]:
        """Numbers calls as they come: the first delta of each has its name, as some parsers repeat."""
        for call in calls:
            function = call.function
            name = None
            if call.index not in self._indices:
                self._indices[call.index] = len(self._indices)
                name = function.name
                if not name:
                    raise ValueError("a call begins without a name")
            index = self._indices[call.index]
            if index and not self._asked.is_parallel:
                continue
            arguments = (function.arguments if function else None) or ""
            if name or arguments:
                yield CallDelta(index, name, arguments)


def lost_content(streamed: ParsedAnswer, whole: ParsedAnswer) -> str:
    """The end of a content that vLLM has held back while streaming, and never given.

    Some of its parsers do so where an answer ends as a marker of theirs begins, with "<". Where
    they have found something else than in the whole answer, what has been streamed stands.
    """
    content, sent = whole.content or "", streamed.content or ""
    is_longer = not whole.calls and whole.reasoning == streamed.reasoning
    return content[len(sent) :] if is_longer and content.startswith(sent) else ""


def guarded(parse: Callable[[], T]) -> T:
    """The result; what vLLM raises ends one request alone."""
    try:
        return parse()
    except Stream2LLMError:
        raise
    except Exception as error:  # of any kind: parsers have bugs, and models write anything
        _log.exception("parser_failed")
        raise InternalError(
            "vLLM's parser failed on this answer; the gateway's log says why",
            reason="PARSER_FAILED",
        ) from error
