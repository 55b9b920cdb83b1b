"""The grammar of one request: whether it is compiled, and where in it the answer stands.

A grammar backend advances an automaton by each token and masks what may follow. Ours
differs from vLLM's use of it in two points:

- The first tokens of an answer may come from another engine: the first one from prefill,
  more after a restart. They stand in the prompt here, and the automaton accepts them before
  it masks anything (`take_up`).
- An automaton that raises ends its request, not the engine (`GuardedGrammar`).

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from stream2llm.api.errors import describe
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.failed_request import (
    FAILED_GRAMMAR,
    BadGrammarError,
    BusyGrammarsError,
    FailedGrammarError,
)
from stream2llm.engine.stoppable_calls import CallFailedError, CallStoppedError, NoProcessError

_log = logging.getLogger(__name__)

# Key in SamplingParams.extra_args of a request that only orders a grammar.
ORDER_KEY = "stream2llm_grammar_order"
# Most characters of a backend's error message.
MAX_REASON_CHARS = 500
_ALL_ALLOWED = -1


def is_grammar_order(request: Request) -> bool:
    """Whether the request has no other purpose than to compile its grammar."""
    return ORDER_KEY in (request.sampling_params.extra_args or {})


def is_compiled(request: Request, waited_s: float, limit_s: float, *, ends_itself: bool) -> bool:
    """Whether the request's grammar is there.

    Raises BadGrammarError when it will not be, and BusyGrammarsError when its turn has not come
    within `limit_s`. `ends_itself`: compiling fails by itself when it takes longer than that.
    """
    grammar = request.structured_output_request.grammar
    if isinstance(grammar, NoProcessError):
        raise grammar
    if isinstance(grammar, Exception):
        raise BadGrammarError(_why(grammar)[:MAX_REASON_CHARS]) from grammar
    if grammar is None and waited_s > limit_s:
        if not request.structured_output_request._grammar.running():
            raise BusyGrammarsError(f"no thread was free for {limit_s:g} s")
        if not ends_itself:
            raise BadGrammarError(f"it takes longer than {limit_s:g} s to compile")
    return grammar is not None


def _why(error: Exception) -> str:
    if isinstance(error, CallStoppedError):
        return f"{error} to compile"
    return str(error) if isinstance(error, CallFailedError) else describe(error)


def compile_figures(request: Request) -> dict[str, Any]:
    """Returns which backend has compiled an order, and within how many seconds.

    The front end gets them as the order's `kv_transfer_params`, the one field of an output that
    takes any values.
    """
    seconds = getattr(request.structured_output_request, "compile_s", 0.0)
    return {"backend": request.sampling_params.structured_outputs._backend, "compile_s": seconds}


class GuardedGrammar(StructuredOutputGrammar):
    """A grammar whose errors fail its request.

    After an error it allows every token, and refuses the one that is sampled; vLLM then ends
    the request.
    """

    def __init__(self, grammar: StructuredOutputGrammar, request: Request) -> None:
        self._grammar = grammar
        self._request = request
        self._has_failed = False

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Advances by the tokens; False when the request has to end."""
        try:
            is_accepted = not self._has_failed and self._grammar.accept_tokens(request_id, tokens)
        except Exception:
            self._fail()
            return False
        if not is_accepted:
            self._request.stop_reason = FAILED_GRAMMAR
        return is_accepted

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """Returns the first tokens that the grammar would accept."""
        try:
            return [] if self._has_failed else self._grammar.validate_tokens(tokens)
        except Exception:
            self._fail()
            return []

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last tokens."""
        try:
            self._grammar.rollback(num_tokens)
        except Exception:
            self._fail()

    def fill_bitmask(self, bitmask: Any, batch_index: int) -> None:
        """Masks the tokens that may not follow."""
        try:
            self._grammar.fill_bitmask(bitmask, batch_index)
        except Exception:
            self._fail()
            bitmask[batch_index].fill_(_ALL_ALLOWED)

    def is_terminated(self) -> bool:
        """Whether nothing is masked any more."""
        try:
            return self._has_failed or bool(self._grammar.is_terminated())
        except Exception:
            self._fail()
            return True

    def reset(self) -> None:
        """Returns to the begin."""
        self._grammar.reset()

    def _fail(self) -> None:
        """Call it while the exception is being handled."""
        _log.exception("grammar_failed request_id=%s", self._request.request_id)
        self._has_failed = True
        self._request.stop_reason = FAILED_GRAMMAR


@dataclass
class _Replay:
    """Stands for a request at the time when an answer of it was sampled."""

    request_id: str
    prompt_token_ids: list[int]
    structured_output_request: Any
    all_token_ids: list[int] = field(default_factory=list)
    use_structured_output: bool = True


def take_up(manager: StructuredOutputManager, request: Request) -> None:
    """Guards the request's grammar, and brings it behind the answer's tokens in the prompt.

    Token by token, as vLLM does it while it samples: then what vLLM keeps beside the
    automaton (where reasoning has ended) is also as in the engine that sampled them.
    Raises FailedGrammarError for an answer that the grammar does not allow.
    """
    structured = request.structured_output_request
    structured.grammar = GuardedGrammar(structured.grammar, request)
    num_tokens = (request.sampling_params.extra_args or {}).get(ANSWER_TOKENS_KEY, 0)
    tokens = [int(each) for each in request.prompt_token_ids]
    num_before = len(tokens) - num_tokens
    replay = _Replay(request.request_id, tokens[:num_before], structured, tokens[:num_before])
    for token_id in tokens[num_before:]:
        replay.all_token_ids.append(token_id)
        if not manager.accept_tokens(replay, [token_id]):
            raise FailedGrammarError(f"it does not accept token {token_id} of the answer")
