"""Ends a request that a scheduler of ours cannot handle, instead of its engine.

Requests are checked before they reach an engine. If one passes that check all the same,
or a bug shows with one request, the exception would end the engine, and with it all
other sessions. Both schedulers catch it where requests arrive, log it, and end that
request with this output.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

# Distinguishes this failure from a failed KV transfer.
FAILED_REQUEST = "stream2llm_failed_request"


def failed_output(request: Request) -> EngineCoreOutput:
    """Returns the last output of a request that failed inside the scheduler."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=FAILED_REQUEST,
    )
