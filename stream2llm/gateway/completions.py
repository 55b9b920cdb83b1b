"""Answers of /v1/completions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.completion_choice import Logprobs

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.events import Answer, Event, Finished, TokenDelta
from stream2llm.api.token_step import TokenLogprobs
from stream2llm.gateway.forms import (
    Opening,
    StreamEnd,
    data,
    error_data,
    extension_of,
    finish_reason,
    usage_of,
)
from stream2llm.gateway.requests import CompletionRequest

Reason = Literal["stop", "length"]


class _Choice(CompletionChoice):
    # Null while the answer goes on; the SDK's type, which its parser does not check, has no null.
    finish_reason: Reason | None  # type: ignore[assignment]


class _Completion(Completion):
    choices: list[_Choice]  # type: ignore[assignment]


class CompletionForm:
    """One completion."""

    def __init__(self, request: CompletionRequest, opening: Opening) -> None:
        self._opening = opening
        self._names = request.parameter_names()
        options = request.stream_options
        self._end = StreamEnd(
            request.num_choices, includes_usage=bool(options and options.include_usage)
        )
        self._includes_logprobs = request.logprobs is not None
        # By choice, the characters of the answer before the next tokens.
        self._num_chars = [0] * request.num_choices

    def begin(self) -> Iterable[str]:
        return ()

    def pieces(self, event: Event) -> Iterator[str]:
        if isinstance(event, TokenDelta) and (event.text or event.logprobs):
            yield self._chunk(event.index, event.text, event.logprobs)
        elif isinstance(event, Finished):
            reason = finish_reason(event.reason)
            yield self._chunk(event.index, "", reason=reason, more=extension_of(event))
            yield from self._end.finished(event.index, event.usage, self._usage_chunk)

    def _usage_chunk(self, usage: CompletionUsage) -> str:
        return data(self._of_choices([], usage))

    def failed(self, error: Stream2LLMError) -> Iterator[str]:
        yield error_data(error, self._names)

    def whole(self, *answers: Answer) -> Completion:
        choices = [
            self._choice(index, each.text, each.logprobs, finish_reason(each.finished.reason))
            for index, each in enumerate(answers)
        ]
        usage = usage_of([each.finished.usage for each in answers])
        return self._of_choices(choices, usage, extension_of(*(each.finished for each in answers)))

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: Reason | None = None,
        more: Mapping[str, Any] = {},
    ) -> str:
        return data(self._of_choices([self._choice(index, text, logprobs, reason)], more=more))

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs], reason: Reason | None
    ) -> _Choice:
        return _Choice(
            index=index,
            text=text,
            finish_reason=reason,
            logprobs=self._logprobs(index, logprobs) if self._includes_logprobs else None,
        )

    def _of_choices(
        self,
        choices: list[_Choice],
        usage: CompletionUsage | None = None,
        more: Mapping[str, Any] = {},
    ) -> Completion:
        last: dict[str, Any] = {} if usage is None else {"usage": usage}
        return _Completion(
            id=self._opening.id,
            object="text_completion",
            created=self._opening.created_s,
            model=self._opening.model,
            choices=choices,
            **last,
            **more,
        )

    def _logprobs(self, index: int, positions: Sequence[TokenLogprobs]) -> Logprobs:
        tokens = [position.sampled.text for position in positions]
        offsets = []
        for token in tokens:
            offsets.append(self._num_chars[index])
            self._num_chars[index] += len(token)
        return Logprobs(
            tokens=tokens,
            token_logprobs=[position.sampled.logprob for position in positions],
            top_logprobs=[{each.text: each.logprob for each in p.top} for p in positions],
            text_offset=offsets,
        )
