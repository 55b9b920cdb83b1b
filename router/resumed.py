"""What a client brings of a session that was at another router, checked. Pure.

at the open   token ids, and as many as an answer can have (`check_opened`)
at the seal   the prompt is known: the answer is taken up where the client has it
              (`taken_up`), or has ended already
"""

from __future__ import annotations

from collections.abc import Callable

from router.answer import Answer, Taken
from router.detokenizer import Detokenizer
from router.lengths import LengthLimits
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.events import TokenDelta
from stream2llm.api.requests import ResumedAnswer, ResumedSession
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import FinishReason, TokenStep

FIELD = "open.resumed"
# More than any client tries; the counts that it is added to are of 32 bits.
_MAX_RESTARTS = 10_000


def other_field(index: int) -> str:
    """The field with what the client has brought of an answer other than that of index 0."""
    return f"{FIELD}.others[{index - 1}]"


def check_opened(
    resumed: ResumedSession, sampling: SamplingParameters, lengths: LengthLimits
) -> None:
    """Raises InvalidRequestError for more answers, or tokens of one, than the session can have."""
    if resumed.restarts > _MAX_RESTARTS:
        limit = f"at most {_MAX_RESTARTS} are allowed"
        raise _bad(f"{FIELD}.restarts is {resumed.restarts}; {limit}", f"{FIELD}.restarts")
    if len(resumed.others) >= sampling.n:
        limit = f"with sampling.n = {sampling.n} at most {sampling.n - 1} are allowed"
        raise _bad(f"{FIELD}.others has {len(resumed.others)} answers; {limit}", f"{FIELD}.others")
    max_tokens = min(sampling.max_tokens or lengths.max_total_tokens, lengths.max_total_tokens)
    for index in range(sampling.n):
        field = other_field(index) if index else FIELD
        check_length(resumed.answer(index), max_tokens, field)


def check_length(resumed: ResumedAnswer, max_tokens: int, field: str) -> None:
    """Raises InvalidRequestError, which names `field`, for more tokens than the answer can have."""
    num_tokens, name = len(resumed.token_ids), f"{field}.token_ids"
    if num_tokens > max_tokens:
        raise _bad(f"{name} has {num_tokens} tokens; the answer has at most {max_tokens}", name)


def check_room(num_tokens: int, lengths: LengthLimits, field: str) -> None:
    """Raises InvalidRequestError where prompt and answer so far fit into no prefill worker."""
    why = lengths.why_not_resumed(num_tokens)
    if why is not None:
        raise InvalidRequestError(why, reason="CONTEXT_TOO_LONG", field=f"{field}.token_ids")


def taken_up(
    resumed: ResumedAnswer,
    answer: Answer,
    whole_text: Detokenizer,
    ends_answer: Callable[[int], bool],
    field: str,
) -> Taken:
    """Brings a new answer to where the client has it.

    Returns what the client lacks: text that its tokens make certain, and the end of the
    answer, if the tokens have it. `ends_answer` says whether a token is a stop token.
    Raises InvalidRequestError, which names `field`, for tokens behind the end, and for more
    characters than the tokens have.
    """
    _check_chars(resumed, whole_text, field)
    texts, ending = list[str](), None
    answer.skip_chars(resumed.num_chars)
    for token_id in resumed.token_ids:
        if ending is not None:
            name = f"{field}.token_ids"
            raise _bad(f"{name} has tokens behind the end of the answer", name)
        taken = answer.take(_step(token_id, is_last=ends_answer(token_id)))
        texts.append(taken.delta.text)
        ending = taken.ending
    return Taken(TokenDelta("".join(texts)), ending)


def _step(token_id: int, *, is_last: bool) -> TokenStep:
    if not is_last:
        return TokenStep((token_id,))
    return TokenStep((token_id,), finish_reason=FinishReason.STOP_TOKEN, stop_token_id=token_id)


def _check_chars(resumed: ResumedAnswer, whole_text: Detokenizer, field: str) -> None:
    pieces = [whole_text.push(token_id) for token_id in resumed.token_ids]
    num_chars = len("".join(pieces) + whole_text.flush())
    if resumed.num_chars > num_chars:
        raise _bad(
            f"{field}.num_chars is {resumed.num_chars}; its tokens have {num_chars} characters",
            f"{field}.num_chars",
        )


def _bad(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_RESUMED", field=field)
