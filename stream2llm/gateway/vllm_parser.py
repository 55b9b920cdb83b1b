"""vLLM's parsers of tool calls and reasoning, as this gateway's.

The parsers are vLLM's own classes, by the names that `vllm serve` takes. Here their requests are
made, and their results translated. Importing them takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    Stream2LLMError,
    UnsupportedError,
)
from stream2llm.api.events import Answer, TokenDelta
from stream2llm.api.extras import install_command
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.gateway.parsing import Content, ParsedAnswer, Parsing, Part, Reasoning
from stream2llm.gateway.tool_calls import CallDelta

_log = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class ParserNames:
    """vLLM's names of the parsers of a gateway; None: there is none."""

    tool: str | None = None
    reasoning: str | None = None


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


class VllmParsers:
    """The parsers of one gateway, for one model. For one event loop."""

    def __init__(self, names: ParserNames, model_path: str) -> None:
        """Imports vLLM; raises UnsupportedError where it, or the tokenizer, has not what they need."""
        self._names = names
        self._classes: dict[tuple[bool, bool], Any] = {}
        self._tokenizer, self._manager = _imported(model_path)
        # Checks them against the tokenizer.
        self._class_of(has_calls=names.tool is not None, has_reasoning=names.reasoning is not None)

    def ends_reasoning(
        self, prompt_end: Sequence[int], chat_template_kwargs: dict[str, Any]
    ) -> bool:
        """Whether an answer after these tokens has no reasoning, as these have ended it."""
        make = self._class_of(has_calls=False, has_reasoning=True)
        kwargs = {"chat_template_kwargs": chat_template_kwargs}
        return _guarded(
            lambda: bool(make(self._tokenizer, **kwargs).is_reasoning_end(list(prompt_end)))
        )

    def parsing(self, asked: AskedParsing) -> Parsing:
        """How the answers to one request are parsed.

        Raises InvalidRequestError for tools that vLLM refuses, and InternalError where it fails.
        """
        make = self._class_of(has_calls=asked.has_calls, has_reasoning=asked.has_reasoning)
        request = _guarded(lambda: _accepted(lambda: _request(asked)))

        def parser() -> Any:
            kwargs = asked.chat_template_kwargs
            made = _guarded(
                lambda: make(self._tokenizer, request.tools, chat_template_kwargs=kwargs)
            )
            made.set_prompt_token_ids(asked.prompt_end)
            return made

        adjusted = _guarded(lambda: _accepted(lambda: parser().adjust_request(request)))
        return Parsing(
            lambda: VllmAnswerParser(parser, request, asked),
            keeps_special_tokens=not adjusted.skip_special_tokens,
            constraint=_constraint_of(adjusted.structured_outputs),
        )

    def _class_of(self, *, has_calls: bool, has_reasoning: bool) -> Any:
        """vLLM's class for what has to be parsed; made once, because it is made with a check."""
        key = has_calls, has_reasoning
        if key not in self._classes:
            self._classes[key] = self._made(has_calls=has_calls, has_reasoning=has_reasoning)
        return self._classes[key]

    def _made(self, *, has_calls: bool, has_reasoning: bool) -> Any:
        try:
            return self._manager.get_parser(
                tool_parser_name=self._names.tool if has_calls else None,
                reasoning_parser_name=self._names.reasoning if has_reasoning else None,
                enable_auto_tools=has_calls,
                tokenizer=self._tokenizer,
            )
        except TypeError as error:
            raise UnsupportedError(f"the gateway's parsers: {error}") from error


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
        return _guarded(lambda: int(self._parser.count_reasoning_tokens(self._token_ids)))

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
        reasoning, content, calls = _guarded(
            lambda: parser.parse(
                text,
                self._request,
                enable_auto_tools=self._asked.has_calls,
                model_output_token_ids=self._token_ids,
            )
        )
        return [*self._texts(reasoning, content), *self._whole_calls(calls or ())]

    def _parsed(self, text: str, token_ids: list[int], *, finished: bool) -> Sequence[Part]:
        delta = _guarded(
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
        calls = _guarded(lambda: list(self._call_deltas(delta.tool_calls)))
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


def _imported(model_path: str) -> tuple[Any, Any]:
    """The model's tokenizer as vLLM has it, and what makes its parsers."""
    try:
        from vllm.parser import ParserManager
        from vllm.tokenizers import get_tokenizer
    except ImportError as error:
        raise UnsupportedError(
            f"gateway.tool_parser and gateway.reasoning_parser need vLLM: {install_command('vllm')}",
            reason="DEPENDENCY_MISSING",
        ) from error
    return get_tokenizer(model_path), ParserManager


def _request(asked: AskedParsing) -> Any:
    """vLLM's request with all that its parsers ask of one; the conversation is none of it."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tools: dict[str, Any] = {}
    if asked.has_calls:
        tools = {"tools": list(asked.tools), "tool_choice": "auto"}
    return ChatCompletionRequest(
        messages=[],
        parallel_tool_calls=asked.is_parallel,
        include_reasoning=asked.includes_reasoning,
        chat_template_kwargs=asked.chat_template_kwargs,
        **tools,
    )


def _constraint_of(asked: Any) -> StructuredOutput | None:
    """What vLLM's structured tool calls constrain, in our form."""
    if asked is None:
        return None
    schema = asked.json
    return StructuredOutput(
        json_schema=json.dumps(schema) if isinstance(schema, dict) else schema,
        regex=asked.regex,
        grammar=asked.grammar,
        structural_tag=asked.structural_tag,
    )


def _accepted(prepare: Callable[[], T]) -> T:
    """The result; what vLLM refuses before there is an answer is the request's fault."""
    try:
        return prepare()
    except ValueError as error:
        message = f"vLLM's parser refuses the request: {str(error)[:_MAX_ERROR_CHARS]}"
        raise InvalidRequestError(message, field="tools") from error


def _guarded(parse: Callable[[], T]) -> T:
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
