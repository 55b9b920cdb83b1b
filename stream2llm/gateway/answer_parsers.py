"""How the answers to a request are parsed: decided by its parameters, and by the end of its prompt.

An answer whose prompt has ended the reasoning, as chat templates do where thinking is switched
off, has none. Where it may have some, a structured output holds from the end of it on.
"""

from __future__ import annotations

import asyncio

from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import UnsupportedError
from stream2llm.api.requests import ChatPrompt
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.client.chat_inputs import ChatOptions
from stream2llm.client.inputs import prompt_of
from stream2llm.gateway.answer_format import the_one
from stream2llm.gateway.model_tokenizer import SharedTokenizer
from stream2llm.gateway.parsing import TEXT, Parsing, with_calls
from stream2llm.gateway.requests import AnswerRequest, ToolRequest
from stream2llm.gateway.tools import Calls
from stream2llm.gateway.vllm_answer import AskedParsing
from stream2llm.gateway.vllm_parser import ParserNames, VllmParsers


class AnswerParsers:
    """The parsers of one gateway. Call `load` before `parsing`."""

    def __init__(self, names: ParserNames, tokenizer: SharedTokenizer | None) -> None:
        """Without a tokenizer there are no parsers."""
        self._names = names
        self._tokenizer = tokenizer
        self._vllm: VllmParsers | None = None

    async def load(self) -> None:
        """Imports the parsers that are configured, which takes seconds.

        Raises UnsupportedError where vLLM or the tokenizer has not what they need.
        """
        if self._tokenizer is None or self._names == ParserNames():
            return
        path = self._tokenizer.model_path
        self._vllm = await asyncio.to_thread(VllmParsers, self._names, path)

    async def parsing(self, request: AnswerRequest, chat: ChatPrompt | None = None) -> Parsing:
        """How its answers are parsed; raises UnsupportedError for what cannot be, by name.

        `chat` is the conversation where it is more than the request's own.
        """
        if not isinstance(request, ToolRequest):
            return TEXT
        use = request.tool_use()
        has_calls = use.calls is Calls.AUTO
        if has_calls:
            self._check_tool_parser()
        constraint, field = _constraint_of(request, has_calls=has_calls)
        prompt_end = await self._prompt_end(request, chat)
        has_reasoning = prompt_end is not None
        if self._vllm is None or not (has_calls or has_reasoning):
            return with_calls(TEXT, use)
        request.check_parsed()
        asked = AskedParsing(
            has_calls=has_calls,
            tools=use.offered,
            is_parallel=use.is_parallel,
            has_reasoning=has_reasoning,
            includes_reasoning=request.include_reasoning is not False,
            chat_template_kwargs=request.chat_template_kwargs or {},
            prompt_end=prompt_end or (),
            constraint=constraint,
            constrained_by=field,
        )
        if constraint is None:
            return self._vllm.parsing(asked)
        # A grammar may take some time to be translated.
        return with_calls(await asyncio.to_thread(self._vllm.parsing, asked), use)

    def _check_tool_parser(self) -> None:
        if self._vllm is None or self._names.tool is None:
            raise UnsupportedError(
                'tool_choice "auto", as without one, needs gateway.tool_parser in the configuration:'
                ' with tools it must be "none", "required" or a function',
                field="tool_choice",
            )

    async def _prompt_end(
        self, request: ToolRequest, chat: ChatPrompt | None
    ) -> tuple[int, ...] | None:
        """The end of the prompt of an answer that may begin with reasoning; None: it may not."""
        if self._vllm is None or self._tokenizer is None or self._names.reasoning is None:
            return None
        chat = chat or _chat_of(request)
        if chat.continue_final_message:  # what is continued is content
            return None
        tokenizer = await self._tokenizer.get()
        end = await asyncio.to_thread(_written_end, tokenizer, chat)
        kwargs = request.chat_template_kwargs or {}
        return None if self._vllm.ends_reasoning(end, kwargs) else end


def _chat_of(request: ToolRequest) -> ChatPrompt:
    chat = prompt_of(request.prompt_content(), ChatOptions(**request.chat_options()))
    assert isinstance(chat, ChatPrompt)
    return chat


def _written_end(tokenizer: ModelTokenizer, chat: ChatPrompt) -> tuple[int, ...]:
    """The tokens that the template writes behind the last text of the client; none without one."""
    if not chat.messages:
        return ()
    written = tokenizer.chat.prompt(chat).written_end()
    encoder = tokenizer.encoder
    return tuple(encoder.encode(encoder.parts_written(written, is_first=False)).tolist())


def _constraint_of(request: ToolRequest, *, has_calls: bool) -> tuple[StructuredOutput | None, str]:
    """What the answer must look like, and the parameter that says it.

    Raises UnsupportedError where calls exclude it.
    """
    constraint = the_one(request.constraints())
    given = next((name for name, each in request.constraints().items() if each), "")
    field = "tool_choice" if given == "tools" else given
    if has_calls and constraint is not None:
        raise UnsupportedError(
            f'{field} and tool_choice "auto" exclude each other: the whole answer has one form',
            field=field,
        )
    return constraint, field
