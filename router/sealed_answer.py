"""What the seal determines: the prompt, and the answer, of which a client may bring a part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.answer import Answer, Taken
from router.detokenizer import Detokenizer
from router.live_session import LiveSession
from router.resumed import check_length, check_room, taken_up
from stream2llm.api.events import TokenDelta
from stream2llm.serving.sessions.prefix import Tokens, as_tokens


@dataclass(frozen=True, slots=True)
class SealedAnswer:
    """The answer to a sealed prompt, while it is generated."""

    prompt: Tokens
    # Maximum tokens of the answer.
    max_tokens: int
    answer: Answer
    # What the client lacks of a part that it has brought: some text, or the end alone.
    unsent: Taken

    @property
    def tokens(self) -> Tokens:
        """The prompt and the answer so far."""
        return np.concatenate([self.prompt, as_tokens(self.answer.token_ids)])

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the prompt and the answer so far."""
        return len(self.prompt) + self.answer.num_tokens

    @property
    def hand_over(self) -> bool:
        """Whether a decode worker goes on behind the next token."""
        return self.max_tokens - self.answer.num_tokens > 1

    @property
    def has_ended(self) -> bool:
        """Whether the part that the client has brought is the whole answer."""
        return self.unsent.ending is not None


def sealed_answer(live: LiveSession, prompt: Tokens) -> SealedAnswer:
    """Begins the answer to a prompt, or takes up the one that the client has brought.

    Raises InvalidRequestError where that is not possible.
    """
    parts, sampling, resumed = live.parts, live.sampling, live.resumed
    room = live.lengths.max_total_tokens - len(prompt)
    max_tokens = min(sampling.max_tokens or room, room)

    def detokenizer() -> Detokenizer:
        skip = sampling.skip_special_tokens
        return parts.detokenizers.of_answer(prompt, skip_special_tokens=skip)

    answer = Answer(detokenizer(), sampling, max_tokens, parts.detokenizers.bytes_of)
    unsent = Taken(TokenDelta(""), None)
    if resumed is not None:
        field = live.resumed_field
        check_length(resumed, max_tokens, field)
        eos = () if sampling.ignore_eos else parts.text.tokenizer.files.eos_token_ids
        stops = {*eos, *sampling.stop_token_ids}
        unsent = taken_up(resumed, answer, detokenizer(), stops.__contains__, field)
        if unsent.ending is None and resumed.token_ids:
            check_room(len(prompt) + len(resumed.token_ids), live.lengths, field)
    return SealedAnswer(prompt, max_tokens, answer, unsent)
