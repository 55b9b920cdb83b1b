"""How long a prompt and its answer may be. Pure.

Three limits apply: the model's length for both together, a prefill worker's KV memory
for the prompt, and a decode or mixed worker's for both. The smallest worker counts: whether a
session succeeds must not depend on the worker it was placed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.settings.worker_spec import Role, WorkerAddress


@dataclass(frozen=True, slots=True)
class _Bound:
    """The longest prompt that one of the limits allows."""

    max_prompt_tokens: int
    # Completes "the context has n tokens; ...".
    reason: str


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Limits in tokens; None: unknown."""

    # Prompt and answer together, from the engines' configuration.
    max_model_len: int
    prefill_kv_tokens: int | None = None
    decode_kv_tokens: int | None = None
    # Whose `decode_kv_tokens` these are.
    smallest_answers_as: Role = "decode"

    @property
    def max_total_tokens(self) -> int:
        """Maximum tokens of a prompt and its answer together."""
        decode = self.decode_kv_tokens
        return self.max_model_len if decode is None else min(self.max_model_len, decode)

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum tokens of a prompt."""
        return self._tightest().max_prompt_tokens

    def for_answer(self, max_tokens: int | None) -> LengthLimits:
        """Returns the limits for an answer of up to `max_tokens`; one token needs no decode."""
        return replace(self, decode_kv_tokens=None) if max_tokens == 1 else self

    def max_prompt_before(self, num_answer_tokens: int) -> int:
        """Returns the maximum prompt before an answer of `num_answer_tokens`; 0 without room."""
        return max(min(self.max_prompt_tokens, self.max_total_tokens - num_answer_tokens), 0)

    def why_not_resumed(self, num_tokens: int) -> str | None:
        """Says why an answer cannot go on behind `num_tokens` tokens of it and its prompt.

        None where it can: they fit into every prefill worker, which computes the next one.
        """
        limit = self.prefill_kv_tokens
        if limit is None or num_tokens <= limit:
            return None
        return (
            f"prompt and answer so far have {num_tokens} tokens, too many to go on: the KV"
            f" memory of the smallest prefill worker holds at most {limit}"
        )

    def check_prompt(self, num_tokens: int, *, at_least: bool = False) -> None:
        """Raises InvalidRequestError that names the limit when the prompt is too long.

        With `at_least`, `num_tokens` is a lower bound.
        """
        bound = self._tightest()
        if num_tokens > bound.max_prompt_tokens:
            has = "has at least" if at_least else "has"
            raise InvalidRequestError(
                f"the context {has} {num_tokens} tokens; {bound.reason}", reason="CONTEXT_TOO_LONG"
            )

    def _tightest(self) -> _Bound:
        return min(self._bounds(), key=lambda bound: bound.max_prompt_tokens)

    def _bounds(self) -> Iterator[_Bound]:
        yield _Bound(
            self.max_model_len - 1,
            f"with one for the answer the model takes at most {self.max_model_len} (max_model_len)",
        )
        if self.prefill_kv_tokens is not None:
            yield _Bound(
                self.prefill_kv_tokens,
                "the KV memory of the smallest prefill worker holds at most"
                f" {self.prefill_kv_tokens}",
            )
        if self.decode_kv_tokens is not None:
            yield _Bound(
                self.decode_kv_tokens - 1,
                f"with one for the answer the KV memory of the smallest {self.smallest_answers_as} worker"
                f" holds at most {self.decode_kv_tokens}",
            )


def limits_with(max_model_len: int, workers: Iterable[WorkerAddress]) -> LengthLimits:
    """Returns the limits of a cluster with these workers."""
    known = list(workers)
    prefilling = [each.num_kv_tokens for each in known if each.role != "decode"]
    answering = [each for each in known if each.role != "prefill"]
    smallest = min(answering, key=lambda each: each.num_kv_tokens, default=None)
    return LengthLimits(
        max_model_len,
        prefill_kv_tokens=min(prefilling, default=None),
        decode_kv_tokens=None if smallest is None else smallest.num_kv_tokens,
        smallest_answers_as="decode" if smallest is None else smallest.role,
    )
