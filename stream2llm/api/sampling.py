"""How an answer is sampled: plain values and their limits.

The same parameters reach prefill (for the first token) and decode (for the
rest). Stop strings are the router's alone: only it has text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.structured_output import StructuredOutput

BAD_SAMPLING = "BAD_SAMPLING"
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20
# vLLM's own limit.
MAX_TEMPERATURE = 2.0
# Logits are divided by it; below this they leave the range of small float types.
MIN_REPETITION_PENALTY = 0.01


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Defaults are vLLM's, but for max_tokens.

    A list that is one item by itself, `stop_strings="END"`, is a list of one. None
    stands for "not given" where that is the default; elsewhere it is refused, as
    InvalidRequestError. All else is the server's to check, with `validate`.
    """

    max_tokens: int | None = None
    """Most tokens of the answer; None means up to the model's limit."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling, in (0, 1]."""
    top_k: int = 0
    """0 is off."""
    seed: int | None = None
    """Makes a sampled answer repeatable."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it. At most 16."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer. At most 64."""
    presence_penalty: float = 0.0
    """In [-2, 2]."""
    frequency_penalty: float = 0.0
    """In [-2, 2]."""
    repetition_penalty: float = 1.0
    """In [0.01, 2]."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report; None reports no logprobs."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token."""
    structured_output: StructuredOutput | None = None
    """What the answer must look like; None: free text."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.default is not None and getattr(self, each.name) is None:
                raise _bad(each.name, None, f"a value; leave it out for {each.default!r}")
        self._make_tuple("stop_strings", "a list of texts", str)
        self._make_tuple("stop_token_ids", "a list of token ids", Integral)
        if not isinstance(self.structured_output, StructuredOutput | None):
            wanted = "a StructuredOutput"
            raise arguments.refused(
                "sampling.structured_output", self.structured_output, wanted, BAD_SAMPLING
            )

    def _make_tuple(self, name: str, wanted: str, single: type) -> None:
        value: Any = getattr(self, name)
        if type(value) is not tuple:
            with bad_sampling():
                items = arguments.many(value, f"sampling.{name}", wanted, single)
            object.__setattr__(self, name, tuple(items))  # frozen for everybody else

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequestError naming the first bad field and its limit."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _bad("max_tokens", self.max_tokens, "at least 1")
        self._validate_distribution()
        self._validate_penalties()
        self._validate_stops(vocab_size)
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _bad("logprobs", self.logprobs, f"between 0 and {MAX_LOGPROBS}")
        if self.structured_output is not None:
            self.structured_output.validate()

    def _validate_distribution(self) -> None:
        # Written so that NaN fails too.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise _bad("temperature", self.temperature, f"between 0 and {MAX_TEMPERATURE:g}")
        if not 0 < self.top_p <= 1:
            raise _bad("top_p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            raise _bad("top_k", self.top_k, "at least 0")

    def _validate_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not -2 <= value <= 2:
                raise _bad(name, value, "between -2 and 2")
        if not MIN_REPETITION_PENALTY <= self.repetition_penalty <= 2:
            limit = f"between {MIN_REPETITION_PENALTY:g} and 2"
            raise _bad("repetition_penalty", self.repetition_penalty, limit)

    def _validate_stops(self, vocab_size: int) -> None:
        _check_count("stop_strings", len(self.stop_strings), MAX_STOP_STRINGS)
        for text in self.stop_strings:
            if not 0 < len(text) <= MAX_STOP_STRING_CHARS:
                limit = f"between 1 and {MAX_STOP_STRING_CHARS} characters long"
                raise _bad("stop_strings", repr(text[:40]), limit)
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token_id in self.stop_token_ids:
            if not 0 <= token_id < vocab_size:
                limit = f"below the vocabulary size {vocab_size}"
                raise _bad("stop_token_ids", token_id, limit)


@contextmanager
def bad_sampling() -> Iterator[None]:
    """Gives errors of arguments the reason that all errors of sampling parameters have."""
    try:
        yield
    except InvalidRequestError as error:
        if error.reason == InvalidRequestError.default_reason:
            error.reason = BAD_SAMPLING
        raise


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequestError(
            f"sampling.{name} has {count} entries; at most {limit} are allowed",
            reason=BAD_SAMPLING,
            field=f"sampling.{name}",
        )


def _bad(name: str, value: object, limit: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"sampling.{name} is {value}; it must be {limit}",
        reason=BAD_SAMPLING,
        field=f"sampling.{name}",
    )
