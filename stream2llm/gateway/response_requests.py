"""The request of /v1/responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import field_validator

from stream2llm.api.errors import UnsupportedError
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.client.inputs import Prompt
from stream2llm.gateway import parameters
from stream2llm.gateway.answer_format import TextOptions, constraint_of
from stream2llm.gateway.requests import Message, ToolRequest, chat_prompt
from stream2llm.gateway.response_items import messages_of
from stream2llm.gateway.tools import (
    ResponseTool,
    ResponseToolChoice,
    ToolChoiceMode,
    ToolUse,
    tool_use,
)

# The one addition to a response that is supported.
LOGPROBS_INCLUDED = "message.output_text.logprobs"


class ResponsesRequest(ToolRequest):
    """POST /v1/responses."""

    not_honoured = parameters.RESPONSES
    names: ClassVar[Mapping[str, str]] = {
        "max_tokens": "max_output_tokens",
        "logprobs": "top_logprobs",
        "messages": "input",
    }

    input: str | list[Message]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: ToolChoiceMode | ResponseToolChoice | None = None
    # Sent back as they are.
    metadata: dict[str, str] | None = None
    user: str | None = None

    @field_validator("metadata", "user")
    @classmethod
    def _can_be_sent_back(cls, given: Any) -> Any:
        json.dumps(given, ensure_ascii=False).encode()  # a ValueError for half of a surrogate pair
        return given

    @property
    def includes_logprobs(self) -> bool:
        """Whether the answer has log-probabilities; raises for what else is to be included."""
        for each in self.include or ():
            if each != LOGPROBS_INCLUDED:
                raise UnsupportedError(
                    f"include has {each!r}; only {LOGPROBS_INCLUDED} is supported", field="include"
                )
        return bool(self.include)

    def check_parsed(self) -> None:
        if self.includes_logprobs:
            raise UnsupportedError(
                f"include has {LOGPROBS_INCLUDED!r}, which is not supported with reasoning or"
                ' tool_choice "auto"',
                field="include",
            )

    def tool_use(self) -> ToolUse:
        return tool_use(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)

    def constraints(self) -> dict[str, StructuredOutput | None]:
        asked = constraint_of(self.text.format if self.text else None)
        return {**super().constraints(), "text.format": asked}

    def max_answer_tokens(self) -> int | None:
        return self.max_output_tokens

    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.includes_logprobs else None

    def prompt_content(self) -> Prompt:
        return chat_prompt(messages_of(self.input, self.instructions), "input")
