"""How an answer is sampled: plain values and their limits.

The same parameters reach prefill (for the first token) and decode (for the
rest), but for what is about text (`LiveSession.worker_sampling`): only the router has text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
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
# OpenAI's limits.
MAX_LOGIT_BIASES = 300
MAX_LOGIT_BIAS = 100.0
# vLLM's limits: sequences, and tokens of all of them together.
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 1024
MAX_BAD_WORD_CHARS = 256
# Each takes KV memory of its own.
MAX_ANSWERS = 16
_HIGHEST_SEED = 2**63 - 1
# vLLM's own limit.
MAX_TEMPERATURE = 2.0
# Logits are divided by it; below this they leave the range of small float types.
MIN_REPETITION_PENALTY = 0.01

TokenSequence = tuple[int, ...]
BadWord = str | TokenSequence


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
    min_tokens: int = 0
    """Before the answer has as many tokens nothing but `max_tokens` ends it: no stop token is
    sampled, and stop strings are not heeded."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one's probability are not sampled.
    In [0, 1]; 0 is off."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """By token id, what is added to its logit, in [-100, 100]. At most 300."""
    bad_words: tuple[BadWord, ...] = ()
    """Texts or token sequences that do not come in the answer. A text stands for its tokens with a
    space before it and without; control tokens in it are only text. Together at most 128
    sequences of 1024 tokens."""
    include_stop_string: bool = False
    """Whether the stop string, or the text of the stop token, is part of the answer's text."""
    skip_special_tokens: bool = True
    """Whether special tokens have no text."""
    truncate_prompt_tokens: int | None = None
    """How many tokens at the end of a complete prompt are used; refused in a session."""
    n: int = 1
    """How many answers to the one prompt, at most 16. Those behind the first one have the seeds
    `seed` + 1, `seed` + 2, ..."""
    structured_output: StructuredOutput | None = None
    """What the answer must look like; None: free text."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.default is not None and getattr(self, each.name) is None:
                default = {} if each.default is MISSING else each.default
                raise _bad(each.name, None, f"a value; leave it out for {default!r}")
        self._make_tuple("stop_strings", "a list of texts", str)
        self._make_tuple("stop_token_ids", "a list of token ids", Integral)
        self._make_tuple("bad_words", "a list of texts", str)
        words = [_bad_word(word, index) for index, word in enumerate(self.bad_words)]
        self._set("bad_words", tuple(words))
        if not isinstance(self.logit_bias, Mapping):
            wanted = "a dictionary by token id"
            raise arguments.refused("sampling.logit_bias", self.logit_bias, wanted, BAD_SAMPLING)
        self._set("logit_bias", dict(self.logit_bias))
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
            self._set(name, tuple(items))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for all others

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequestError naming the first bad field and its limit."""
        self._validate_lengths()
        self._validate_distribution()
        self._validate_penalties()
        self._validate_stops(vocab_size)
        self._validate_logit_bias(vocab_size)
        self._validate_bad_words(vocab_size)
        self._validate_answers()
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _bad("logprobs", self.logprobs, f"between 0 and {MAX_LOGPROBS}")
        if self.structured_output is not None:
            self.structured_output.validate()

    def _validate_lengths(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _bad("max_tokens", self.max_tokens, "at least 1")
        if self.min_tokens < 0:
            raise _bad("min_tokens", self.min_tokens, "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _bad("min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise _bad("truncate_prompt_tokens", self.truncate_prompt_tokens, "at least 1")

    def _validate_answers(self) -> None:
        if not 1 <= self.n <= MAX_ANSWERS:
            raise _bad("n", self.n, f"between 1 and {MAX_ANSWERS}")
        highest = _HIGHEST_SEED - (self.n - 1)
        if self.seed is not None and self.seed > highest:
            raise _bad("seed", self.seed, f"at most {highest} with n = {self.n}")

    def of_answer(self, index: int) -> SamplingParameters:
        """The parameters of one of the `n` answers; answers with a seed are not to be alike."""
        seed = None if self.seed is None else self.seed + index
        return replace(self, n=1, seed=seed)

    def _validate_distribution(self) -> None:
        # Written so that NaN fails too.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise _bad("temperature", self.temperature, f"between 0 and {MAX_TEMPERATURE:g}")
        if not 0 < self.top_p <= 1:
            raise _bad("top_p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            raise _bad("top_k", self.top_k, "at least 0")
        if not 0 <= self.min_p <= 1:
            raise _bad("min_p", self.min_p, "between 0 and 1")

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
        _check_ids("stop_token_ids", self.stop_token_ids, vocab_size)

    def _validate_logit_bias(self, vocab_size: int) -> None:
        _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIASES)
        _check_ids("logit_bias", self.logit_bias, vocab_size)
        for token_id, bias in self.logit_bias.items():
            if not abs(bias) <= MAX_LOGIT_BIAS:
                limit = f"between -{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}"
                raise _bad(f"logit_bias[{token_id}]", bias, limit)

    def _validate_bad_words(self, vocab_size: int) -> None:
        check_bad_words(self.bad_words)
        for index, word in enumerate(self.bad_words):
            name = f"bad_words[{index}]"
            if not word:
                raise _bad(name, "empty", "a text or token ids")
            if isinstance(word, tuple):
                _check_ids(name, word, vocab_size)
            elif len(word) > MAX_BAD_WORD_CHARS:
                raise _bad(name, repr(word[:40]), f"at most {MAX_BAD_WORD_CHARS} characters long")


def check_bad_words(words: Sequence[BadWord]) -> None:
    """Raises InvalidRequestError for more words, or more tokens in them, than vLLM takes."""
    _check_count("bad_words", len(words), MAX_BAD_WORDS)
    num_tokens = sum(len(word) for word in words if isinstance(word, tuple))
    _check_count("bad_words", num_tokens, MAX_BAD_WORD_TOKENS, "tokens")


@contextmanager
def bad_sampling() -> Iterator[None]:
    """Gives errors of arguments the reason that all errors of sampling parameters have."""
    try:
        yield
    except InvalidRequestError as error:
        if error.reason == InvalidRequestError.default_reason:
            error.reason = BAD_SAMPLING
        raise


def _bad_word(word: Any, index: int) -> BadWord:
    name = f"sampling.bad_words[{index}]"
    with bad_sampling():
        if isinstance(word, str):
            return word
        items = arguments.many(word, name, "a text, or a list of token ids")
        return tuple([arguments.integer(each, name, 0, 2**32 - 1) for each in items])


def _check_count(name: str, count: int, limit: int, what: str = "entries") -> None:
    if count > limit:
        raise InvalidRequestError(
            f"sampling.{name} has {count} {what}; at most {limit} are allowed",
            reason=BAD_SAMPLING,
            field=f"sampling.{name}",
        )


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise _bad(name, token_id, f"below the vocabulary size {vocab_size}")


def _bad(name: str, value: object, limit: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"sampling.{name} is {value}; it must be {limit}",
        reason=BAD_SAMPLING,
        field=f"sampling.{name}",
    )
