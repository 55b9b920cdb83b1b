"""How a scheduler of ours ends one request that it cannot handle, instead of its engine.

What comes from outside is checked before an engine sees it. Should something pass
that check all the same, or a rule of ours break over one request, the exception
would end the engine, and with it everybody else's sessions. Both schedulers catch
it where requests come in, log it, and end that request with this output.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

# Tells the front end that it was not the KV that failed.
FAILED_REQUEST = "stream2llm_failed_request"


def failed_output(request: Request) -> EngineCoreOutput:
    """The end of a request that failed inside the scheduler."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=FAILED_REQUEST,
    )
