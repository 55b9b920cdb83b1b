"""vLLM's parsers of tool calls and reasoning, as this gateway's.

The parsers are vLLM's own classes, by the names that `vllm serve` takes. Here their requests are
made; `vllm_answer.py` translates their results. Importing them takes seconds and hundreds of
megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.extras import install_command
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.gateway.parsing import Parsing
from stream2llm.gateway.vllm_answer import (
    AskedParsing,
    ReasoningEnd,
    VllmAnswerParser,
    guarded,
)

T = TypeVar("T")
_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class ParserNames:
    """vLLM's names of the parsers of a gateway; None: there is none."""

    tool: str | None = None
    reasoning: str | None = None


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
        return guarded(
            lambda: bool(make(self._tokenizer, **kwargs).is_reasoning_end(list(prompt_end)))
        )

    def parsing(self, asked: AskedParsing) -> Parsing:
        """How the answers to one request are parsed.

        Raises InvalidRequestError for tools, or a constraint, that vLLM refuses, and InternalError
        where it fails.
        """
        make = self._class_of(has_calls=asked.has_calls, has_reasoning=asked.has_reasoning)
        request = _accepted("tools", lambda: _request(asked))

        def parser() -> Any:
            kwargs = asked.chat_template_kwargs
            made = guarded(
                lambda: make(self._tokenizer, request.tools, chat_template_kwargs=kwargs)
            )
            made.set_prompt_token_ids(asked.prompt_end)
            return made

        made = parser()
        adjusted = _accepted("tools", lambda: made.adjust_request(request))
        of_calls = _constraint_of(adjusted.structured_outputs)
        return Parsing(
            lambda: VllmAnswerParser(parser, request, asked),
            keeps_special_tokens=not adjusted.skip_special_tokens,
            constraint=self._constraint(made, asked, of_calls),
        )

    def _constraint(
        self, parser: Any, asked: AskedParsing, of_calls: StructuredOutput | None
    ) -> StructuredOutput | None:
        """The request's own, or what vLLM has `of_calls`, behind the reasoning."""
        constraint, field = of_calls, "tools"
        if asked.constraint is not None:
            constraint, field = asked.constraint, asked.constrained_by
        end = self._reasoning_end(parser)
        if asked.constraint is not None and end is None:
            raise UnsupportedError(
                f"{field} leaves no room for the model's reasoning, of which"
                f" {self._names.reasoning} (gateway.reasoning_parser) does not say how it ends:"
                ' switch it off in chat_template_kwargs, as by {"enable_thinking": false}',
                field=field,
            )
        if constraint is None or end is None:
            return constraint
        from stream2llm.gateway.reasoning_grammar import behind_reasoning

        has_to_come = asked.constraint is not None
        return _accepted(field, lambda: behind_reasoning(constraint, end, has_to_come=has_to_come))

    def _reasoning_end(self, parser: Any) -> ReasoningEnd | None:
        """How reasoning ends; None where there is none, or vLLM's parser does not say it."""
        text = getattr(parser.reasoning_parser, "reasoning_end_str", None)
        if not text:
            return None
        return ReasoningEnd(text, self._tokenizer.get_added_vocab().get(text))

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


def _accepted(field: str, prepare: Callable[[], T]) -> T:
    """The result; what vLLM refuses before there is an answer is the fault of the parameter."""

    def accepted() -> T:
        try:
            return prepare()
        except ValueError as error:
            message = f"vLLM's parser refuses the request: {str(error)[:_MAX_ERROR_CHARS]}"
            raise InvalidRequestError(message, field=field) from error

    return guarded(accepted)
