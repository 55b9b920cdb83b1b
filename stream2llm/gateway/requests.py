"""The parameters that are honoured, by route: their types, and what they ask of a router."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.requests import Content
from stream2llm.api.sampling import SamplingParameters
from stream2llm.client.inputs import MessageLike, Prompt
from stream2llm.gateway import parameters

# Of a completion, where OpenAI's API has a limit of its own.
DEFAULT_COMPLETION_TOKENS = 16
# The one addition to a response that is supported.
LOGPROBS_INCLUDED = "message.output_text.logprobs"
Message = dict[str, Any]


class StreamOptions(BaseModel):
    """What a stream brings beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

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

    def check_others(self) -> None:
        """Raises for a parameter that is not honoured, by name."""
        parameters.check_others(self.model_extra or {}, self.not_honoured)

    def sampling(self) -> SamplingParameters:
        """How the answer is sampled."""
        asked: dict[str, Any] = {
            "max_tokens": self.max_answer_tokens(),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "seed": self.seed,
            "stop_strings": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": self.num_logprobs(),
            "ignore_eos": self.ignore_eos,
        }
        return SamplingParameters(**{name: v for name, v in asked.items() if v is not None})

    def max_answer_tokens(self) -> int | None:
        """Maximum tokens of the answer; None: up to the model's limit."""
        raise NotImplementedError

    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report at each position; None: no log-probabilities."""
        raise NotImplementedError

    def prompt_content(self) -> Prompt:
        """The prompt, as the client takes it."""
        raise NotImplementedError


class ChatRequest(AnswerRequest):
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

    def prompt_content(self) -> Prompt:
        return chat_prompt(self.messages, "messages")


class CompletionRequest(AnswerRequest):
    """POST /v1/completions."""

    not_honoured = parameters.COMPLETION
    names: ClassVar[Mapping[str, str]] = {"text": "prompt"}

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    stream_options: StreamOptions | None = None

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


class ResponsesRequest(AnswerRequest):
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

    def max_answer_tokens(self) -> int | None:
        return self.max_output_tokens

    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.includes_logprobs else None

    def prompt_content(self) -> Prompt:
        return chat_prompt(messages_of(self.input, self.instructions), "input")


def messages_of(given: str | list[Message], instructions: str | None = None) -> list[Message]:
    """The conversation that the input of a response stands for, after its instructions."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    before = [] if instructions is None else [{"role": "system", "content": instructions}]
    return before + [_message_of(item, f"input[{i}]") for i, item in enumerate(items)]


def _message_of(item: Message, field: str) -> Message:
    """One item as a chat message; its texts stay what they are."""
    kind = item.get("type", "message")
    if kind != "message":
        raise UnsupportedError(f"{field} is a {kind!r}; only messages are supported", field=field)
    content = item.get("content")
    if isinstance(content, list):
        content = [_part_of(p, f"{field}.content[{i}]") for i, p in enumerate(content)]
    return {"role": item.get("role"), "content": content}


def _part_of(part: Any, field: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text"):
        raise UnsupportedError(
            f"{field} is a part of type {kind!r}; only text is supported", field=field
        )
    return {"type": "text", "text": part.get("text")}
