"""An answer while it is generated: token steps in, deltas and the ending out. Pure.

Prefill's first token and decode's steps go through the same `Answer`, so a
character or a stop string may begin in one and end in the other. Tokens are
taken one by one: the result does not depend on how an engine groups them into steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from router.detokenizer import Detokenizer
from router.stop_strings import StopStringMatcher
from stream2llm.api.events import Finished, TokenDelta
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import FinishReason, Logprob, TokenLogprobs, TokenStep


@dataclass(frozen=True, slots=True)
class Taken:
    """The output of one step; `ending` is None while the answer continues."""

    delta: TokenDelta
    # Why the answer ended, without figures yet; None while it goes on.
    ending: Finished | None


class Answer:
    """The state of one answer."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        sampling: SamplingParameters,
        max_tokens: int,
        bytes_of: Callable[[int], bytes],
    ) -> None:
        """`max_tokens` is what the model has room for, too; `bytes_of` knows a token's bytes."""
        self._detokenizer = detokenizer
        self._matcher = StopStringMatcher(
            sampling.stop_strings, shows_them=sampling.include_stop_string
        )
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._bytes_of = bytes_of
        self.token_ids: list[int] = []
        # Characters of the text, from here on, that the client has.
        self._num_chars_sent = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def skip_chars(self, num_chars: int) -> None:
        """The client has the first `num_chars` characters from another router."""
        self._num_chars_sent = num_chars

    def take(self, step: TokenStep) -> Taken:
        """Takes one engine step. Tokens behind the end are dropped."""
        text: list[str] = []
        ending = None
        num_taken = 0
        for token_id in step.token_ids:
            num_taken += 1
            is_last = num_taken == len(step.token_ids)
            ending = self._take_token(token_id, step if is_last else None, text)
            if ending is not None:
                break
        if not step.token_ids and step.finish_reason is not None:
            ending = self._end(Finished(step.finish_reason), text)
        logprobs = tuple(self._with_text(item) for item in step.logprobs[:num_taken])
        delta = TokenDelta(self._unsent("".join(text)), step.token_ids[:num_taken], logprobs)
        return Taken(delta, ending)

    def _unsent(self, text: str) -> str:
        num_sent = min(self._num_chars_sent, len(text))
        self._num_chars_sent -= num_sent
        return text[num_sent:]

    def _take_token(
        self, token_id: int, last_of: TokenStep | None, text: list[str]
    ) -> Finished | None:
        self.token_ids.append(token_id)
        reason = last_of.finish_reason if last_of else None
        if reason is not FinishReason.STOP_TOKEN or self._sampling.include_stop_string:
            stopped = self._show(self._detokenizer.push(token_id), text)
            if stopped is not None:
                return stopped
        if reason is None and self.num_tokens >= self._max_tokens:
            reason = FinishReason.LENGTH
        return None if reason is None else self._end(_ending(reason, token_id, last_of), text)

    def _end(self, ending: Finished, text: list[str]) -> Finished:
        stopped = self._show(self._detokenizer.flush(), text)
        if stopped is not None:
            return stopped
        text.append(self._matcher.flush())
        return ending

    def _show(self, piece: str, text: list[str]) -> Finished | None:
        may_stop = self.num_tokens > self._sampling.min_tokens
        matched = self._matcher.push(piece, may_stop=may_stop)
        text.append(matched.text)
        if matched.stop_string is None:
            return None
        return Finished(FinishReason.STOP_STRING, stop_string=matched.stop_string)

    def _with_text(self, item: TokenLogprobs) -> TokenLogprobs:
        return TokenLogprobs(self._named(item.sampled), tuple(map(self._named, item.top)))

    def _named(self, logprob: Logprob) -> Logprob:
        token_bytes = self._bytes_of(logprob.token_id)
        text = token_bytes.decode(errors="replace")
        return replace(logprob, text=text, token_bytes=token_bytes)


def _ending(reason: FinishReason, token_id: int, step: TokenStep | None) -> Finished:
    """Returns the end of an answer whose last token is this one, the last of `step`, if given."""
    if step is None or reason is not FinishReason.STOP_TOKEN:
        return Finished(reason)
    named = step.stop_token_id
    return Finished(reason, stop_token_id=token_id if named is None else named)
