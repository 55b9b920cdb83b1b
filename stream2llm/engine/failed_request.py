"""Ends a request that a scheduler of ours cannot handle, instead of its engine.

Requests are checked before they reach an engine. If one passes that check all the same,
or a bug shows with one request, the exception would end the engine, and with it all
other sessions. Both schedulers catch it where requests arrive, log it, and end that
request with this output.

Runs inside vLLM's EngineCore process; the front end reads the reasons.
"""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

# Distinguishes this failure from a failed KV transfer.
FAILED_REQUEST = "stream2llm_failed_request"
# The grammar of the structured output refused or failed on what was sampled.
FAILED_GRAMMAR = "stream2llm_failed_grammar"
# Why the grammar could not be compiled follows.
BAD_GRAMMAR = "stream2llm_bad_grammar: "
# The grammars of others were being compiled all the time.
BUSY_GRAMMARS = "stream2llm_busy_grammars"


class BadGrammarError(Exception):
    """The structured output of a request cannot be compiled; the message says why."""


class BusyGrammarsError(Exception):
    """No thread was free to compile the structured output of a request in time."""


class FailedGrammarError(Exception):
    """The grammar of a request does not accept the begin of its answer."""


_STOP_REASONS = {BusyGrammarsError: BUSY_GRAMMARS, FailedGrammarError: FAILED_GRAMMAR}


def stop_reason_of(error: Exception) -> str:
    """Returns the stop reason by which the front end knows the failure."""
    if isinstance(error, BadGrammarError):
        return f"{BAD_GRAMMAR}{error}"
    return _STOP_REASONS.get(type(error), FAILED_REQUEST)


def failed_output(request: Request, error: Exception) -> EngineCoreOutput:
    """Returns the last output of a request that failed inside the scheduler."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=stop_reason_of(error),
    )
