"""What the forms of answers have in common: OpenAI's objects from a router's events. Pure.

A form is one answer in the way of one route: as text pieces of a stream of server-sent
events, or as one object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from openai.types import CompletionUsage
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from pydantic import BaseModel

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, Usage
from stream2llm.api.token_step import FinishReason, Logprob
from stream2llm.gateway.errors import body_of
from stream2llm.gateway.parsing import TEXT, Parsing

DONE = "data: [DONE]\n\n"
# The name of the object with what OpenAI's do not have.
EXTENSION = "stream2llm"


@dataclass(frozen=True, slots=True)
class Opening:
    """What an answer has from the beginning."""

    # With the prefix of its route; also the session's id at the router.
    id: str
    # Seconds since 1970.
    created_s: int
    # The served model's name.
    model: str
    # How its answers are parsed.
    parsing: Parsing = TEXT


class Form(Protocol):
    """One answer, which may have several choices."""

    def begin(self) -> Iterable[str]:
        """The pieces of a stream before the first token: the request is admitted."""

    def pieces(self, event: Event) -> Iterable[str]:
        """The pieces of a stream for the next event.

        The last `Finished` brings the last ones.
        """

    def failed(self, error: Stream2LLMError) -> Iterable[str]:
        """The last pieces of a stream that does not come to its end."""

    def whole(self, *answers: Answer) -> BaseModel:
        """The answer as one object; of several choices, in their order."""


class StreamEnd:
    """The end of a stream with the chunks of one or several choices."""

    def __init__(self, num_choices: int, *, includes_usage: bool) -> None:
        self.includes_usage = includes_usage
        self._num_choices = num_choices
        self._usages: dict[int, Usage] = {}
        self._num_reasoning: int | None = None

    def finished(
        self,
        index: int,
        usage: Usage,
        write: Callable[[CompletionUsage], str],
        num_reasoning_tokens: int | None = None,
    ) -> Iterator[str]:
        """Yields the last pieces once all choices have finished; `write` makes that with the usage.

        `num_reasoning_tokens` are those of that choice; None: they are not counted.
        """
        self._usages[index] = usage
        if num_reasoning_tokens is not None:
            self._num_reasoning = (self._num_reasoning or 0) + num_reasoning_tokens
        if len(self._usages) < self._num_choices:
            return
        if self.includes_usage:
            usages = [self._usages[each] for each in sorted(self._usages)]
            yield write(usage_of(usages, self._num_reasoning))
        yield DONE


def data(item: BaseModel) -> str:
    """One server-sent event without a name."""
    return f"data: {item.model_dump_json(exclude_unset=True, by_alias=True)}\n\n"


def error_data(error: Stream2LLMError, names: Mapping[str, str]) -> str:
    """An error in a stream, which clients raise."""
    return f"data: {json.dumps(body_of(error, names))}\n\n"


def finish_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """Why an answer ended, in OpenAI's words."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def usage_of(choices: Sequence[Usage], num_reasoning_tokens: int | None = None) -> CompletionUsage:
    """The tokens of all choices, which have one prompt, and their own answers.

    Cached are those of the prompt that prefill has found for the first one instead of computing.
    """
    details: dict[str, Any] = {}
    if num_reasoning_tokens is not None:
        counted = CompletionTokensDetails(reasoning_tokens=num_reasoning_tokens)
        details = {"completion_tokens_details": counted}
    first, *_ = choices  # the others do not count the prompt again
    num_completion = sum(usage.completion_tokens for usage in choices)
    return CompletionUsage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=num_completion,
        total_tokens=first.prompt_tokens + num_completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=first.reused_tokens),
        **details,
    )


def extension_of(*choices: Finished) -> dict[str, Any]:
    """Our object of an answer, which says whether it was resumed at other workers or routers."""
    return {EXTENSION: {"restarts": max(each.restarts for each in choices)}}


def entry_of(logprob: Logprob) -> dict[str, Any]:
    """The fields that all of OpenAI's objects for one token's log-probability have."""
    token_bytes = list(logprob.token_bytes)
    return {"token": logprob.text, "logprob": logprob.logprob, "bytes": token_bytes}
