"""The parameters that are honoured, by route: their types, and what they ask of a router."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.requests import Content
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.client.chat_inputs import MessageLike
from stream2llm.client.inputs import Prompt
from stream2llm.gateway import parameters
from stream2llm.gateway.answer_format import (
    ResponseFormat,
    Strict,
    StructuredOutputs,
    constraint_of,
    the_one,
)
from stream2llm.gateway.tools import (
    Calls,
    ChatTool,
    ChatToolChoice,
    ToolChoiceMode,
    ToolUse,
    tool_use,
)

# Default of a completion's `max_tokens` in OpenAI's API.
DEFAULT_COMPLETION_TOKENS = 16
Message = dict[str, Any]
# As Python writes an integer, so that no two keys are one token; below 2^32 or a little above.
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


class StreamOptions(Strict):
    """What a stream brings beside the answer."""

    include_usage: bool | None = None
    # Padding against the length of packets; there is none in either case.
    include_obfuscation: bool | None = None


class AnswerRequest(BaseModel):
    """What all routes have in common. Null stands for "not given", as in OpenAI's API."""

    # Others are kept, and checked by name (`check_others`).
    model_config = ConfigDict(extra="allow", strict=True)
    not_honoured: ClassVar[Mapping[str, parameters.Neutral]]
    # Names of the route's own for what other routes and gRPC call differently.
    names: ClassVar[Mapping[str, str]]

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # vLLM's; -1 is off there.
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    min_p: float | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputs | None = None
    # OpenAI's, by the token's id.
    logit_bias: dict[str, float] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _has_token_ids(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        for key in given or ():
            if not _TOKEN_ID.fullmatch(key):
                raise ValueError(f"{arguments.shown(key)} is not a token's id")
        return given

    def check_others(self) -> None:
        """Raises for a parameter that is not honoured, by name."""
        parameters.check_others(self.model_extra or {}, self.not_honoured)

    @property
    def num_choices(self) -> int:
        """Number of answers that are asked for."""
        return 1

    def sampling(self) -> SamplingParameters:
        """How the answers are sampled."""
        asked: dict[str, Any] = {
            "max_tokens": self.max_answer_tokens(),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "seed": self.seed,
            "n": self.num_choices,
            "stop_strings": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": self.num_logprobs(),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "min_p": self.min_p,
            "bad_words": self.bad_words,
            "include_stop_string": self.include_stop_str_in_output,
            "skip_special_tokens": self.skip_special_tokens,
            "truncate_prompt_tokens": self.truncate_prompt_tokens,
            "structured_output": the_one(self.constraints()),
            "logit_bias": {int(key): bias for key, bias in (self.logit_bias or {}).items()},
        }
        return SamplingParameters(**{name: v for name, v in asked.items() if v is not None})

    def constraints(self) -> dict[str, StructuredOutput | None]:
        """What the answer must look like, by the parameter that says it."""
        return {"structured_outputs": constraint_of(self.structured_outputs)}

    def parameter_names(self) -> dict[str, str]:
        """As `names`, for this very request."""
        given = (name for name, constraint in self.constraints().items() if constraint)
        return {**self.names, "structured_output": next(given, "structured_outputs")}

    def max_answer_tokens(self) -> int | None:
        """Maximum tokens of the answer; None: up to the model's limit."""
        raise NotImplementedError

    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report at each position; None: no log-probabilities."""
        raise NotImplementedError

    def prompt_content(self) -> Prompt:
        """The prompt, as the client takes it."""
        raise NotImplementedError

    def chat_options(self) -> dict[str, Any]:
        """What goes with the messages of a chat, by the client's arguments."""
        return {}


class ToolRequest(AnswerRequest):
    """A conversation, in which the model may be made to call tools."""

    parallel_tool_calls: bool | None = None
    # vLLM's.
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check_parsed(self) -> None:
        """Raises UnsupportedError for what cannot be had where answers are parsed, by name."""
        raise NotImplementedError

    def tool_use(self) -> ToolUse:
        """The tools, and what becomes of them."""
        raise NotImplementedError

    def constraints(self) -> dict[str, StructuredOutput | None]:
        return {**super().constraints(), "tools": self.tool_use().constraint()}

    def parameter_names(self) -> dict[str, str]:
        names = super().parameter_names()
        if self.tool_use().calls is Calls.AUTO:  # vLLM's parser may constrain the calls
            names["structured_output"] = "tools"
        return names

    def chat_options(self) -> dict[str, Any]:
        return {
            "tools": self.tool_use().offered,
            "chat_template_kwargs": self.chat_template_kwargs,
        }


class ChatRequest(ToolRequest):
    """POST /v1/chat/completions."""

    not_honoured = parameters.CHAT
    names: ClassVar[Mapping[str, str]] = {
        "max_tokens": "max_completion_tokens",
        "logprobs": "top_logprobs",
    }

    messages: list[Message]
    max_completion_tokens: int | None = None
    # Its former name.
    max_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    tools: list[ChatTool] | None = None
    tool_choice: ToolChoiceMode | ChatToolChoice | None = None
    response_format: ResponseFormat | None = Field(default=None, discriminator="type")
    # vLLM's.
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def constraints(self) -> dict[str, StructuredOutput | None]:
        asked = constraint_of(self.response_format)
        return {**super().constraints(), "response_format": asked}

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    def max_answer_tokens(self) -> int | None:
        """Raises InvalidRequestError where both names are given, and differ."""
        new, former = self.max_completion_tokens, self.max_tokens
        if new is not None and former is not None and new != former:
            raise InvalidRequestError(
                f"max_tokens is {former}, and max_completion_tokens is {new}: give one of them",
                field="max_completion_tokens",
            )
        return former if new is None else new

    def num_logprobs(self) -> int | None:
        """Raises InvalidRequestError for a number without `logprobs`."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs needs logprobs to be true", field="top_logprobs"
            )
        return (self.top_logprobs or 0) if self.logprobs else None

    def check_parsed(self) -> None:
        if self.logprobs and self.include_reasoning is False:
            raise UnsupportedError(
                "include_reasoning must not be false with logprobs, which show the reasoning",
                field="include_reasoning",
            )

    def prompt_content(self) -> Prompt:
        return chat_prompt(self.messages, "messages")

    def tool_use(self) -> ToolUse:
        return tool_use(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)

    def chat_options(self) -> dict[str, Any]:
        return {
            **super().chat_options(),
            "continue_final_message": bool(self.continue_final_message),
            "add_generation_prompt": self.add_generation_prompt,
        }


class CompletionRequest(AnswerRequest):
    """POST /v1/completions."""

    not_honoured = parameters.COMPLETION
    names: ClassVar[Mapping[str, str]] = {"text": "prompt"}

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    response_format: ResponseFormat | None = Field(default=None, discriminator="type")

    def constraints(self) -> dict[str, StructuredOutput | None]:
        asked = constraint_of(self.response_format)
        return {**super().constraints(), "response_format": asked}

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    def max_answer_tokens(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompt_content(self) -> Prompt:
        """Raises InvalidRequestError unless there is exactly one prompt."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise InvalidRequestError(
                    f"prompt is a list of {len(prompt)}; one request has one prompt", field="prompt"
                )
            prompt = prompt[0]
        content: Content = prompt
        return content


def chat_prompt(messages: list[Message], field: str) -> list[MessageLike]:
    """The messages of a conversation, of which there must be one; null counts as not given."""
    if not messages:
        raise InvalidRequestError(f"{field} must hold at least one message", field=field)
    return [
        {key: value for key, value in message.items() if value is not None} for message in messages
    ]
