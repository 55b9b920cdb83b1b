"""What an engine step gives one request, free of engine and transport."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability."""

    token_id: int
    # Natural logarithm.
    logprob: float
    # 1 is the likeliest.
    rank: int
    # Only the router fills it in.
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probabilities at one position."""

    sampled: Logprob
    # Likeliest first.
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenStep:
    """New tokens, and why the engine ended the answer, if it did."""

    token_ids: tuple[int, ...]
    # One for each token when logprobs were asked for, else empty.
    logprobs: tuple[TokenLogprobs, ...] = ()
    # None while the answer goes on.
    finish_reason: FinishReason | None = None
    # The token that ended the answer, when one did.
    stop_token_id: int | None = None
