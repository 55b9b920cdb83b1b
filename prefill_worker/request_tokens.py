"""The token sequence of a vLLM request, and events in the form of requests."""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus

from prefill_worker.report import SchedulerCommand
from prefill_worker.session_state import WIRE_KEY, ContextEvent


def event_or_command(request: Request) -> ContextEvent | SchedulerCommand | None:
    """Returns the event or command in a request; None for an ordinary, sealed request."""
    raw = (request.sampling_params.extra_args or {}).get(WIRE_KEY)
    if not raw:
        return None
    return SchedulerCommand.from_wire(raw) or ContextEvent.from_wire(raw)


def num_to_sample(request: Request, event: ContextEvent | None) -> int:
    """Returns how many tokens of the answer are generated here: one, unless the seal says all."""
    num_tokens: int = request.max_tokens
    return num_tokens if event is not None and event.answers else 1


def announce_anew(request: Request) -> None:
    """Has the next step that computes it tell the worker process of its tokens and blocks.

    WAITING brings both. But the model runner would forget the tokens that it has sampled, so
    a request with some is PREEMPTED, which brings the blocks alone.
    """
    has_sampled = request.num_output_tokens > 0
    request.status = RequestStatus.PREEMPTED if has_sampled else RequestStatus.WAITING


def replace_tail(request: Request, num_kept: int, tail: list[int], hash_block_size: int) -> None:
    """Replaces the request's prompt behind its first `num_kept` tokens with `tail`."""
    for tokens in (request._all_token_ids, request.prompt_token_ids):
        del tokens[num_kept:]
        tokens.extend(tail)
    request.num_prompt_tokens = len(request.prompt_token_ids)
    del request.block_hashes[num_kept // hash_block_size :]
    request.update_block_hashes()
