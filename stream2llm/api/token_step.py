"""What an engine step gives one request, free of engine and transport."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP_TOKEN = "stop_token"
    """The end-of-sequence token, or one of `stop_token_ids`, was sampled."""
    STOP_STRING = "stop_string"
    """One of `stop_strings` appeared."""
    LENGTH = "length"
    """`max_tokens` or the model's limit was reached."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability. Text and bytes are empty between router and workers."""

    token_id: int
    """The token."""
    logprob: float
    """Natural logarithm."""
    rank: int
    """1 is the likeliest."""
    text: str = ""
    """The token's text; bytes that are no whole character become U+FFFD."""
    token_bytes: bytes = b""
    """The token's bytes: those of several tokens in a row may make up one character."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probabilities at one position."""

    sampled: Logprob
    """The sampled token."""
    top: tuple[Logprob, ...] = ()
    """Likeliest first."""


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
