"""The metrics that the view is made of."""

from __future__ import annotations

from typing import Final

from stream2llm.workload.replay.metrics import (
    KV_BLOCKS,
    POLICY,
    PREFILL_SESSIONS,
    WORKER_SESSIONS,
)

TTFT: Final = "stream2llm_time_to_first_token_seconds"
ACTIVE: Final = "stream2llm_sessions_active"
ERRORS: Final = "stream2llm_errors_total"
OUTPUT: Final = "stream2llm_output_tokens_total"
PREFILL_TOKENS: Final = "stream2llm_prefill_tokens_total"
PREEMPTIONS: Final = "stream2llm_preemptions_total"
OFFLOAD_POOL: Final = "stream2llm_offload_pool_blocks"
HANDOVER_BLOCKS: Final = "stream2llm_handover_blocks_total"
TENANT_OPEN: Final = "stream2llm_tenant_sessions_active"
TENANT_TTFT: Final = "stream2llm_tenant_ttft_seconds"
TENANT_PREFILLED: Final = "stream2llm_tenant_prefilled_tokens_total"
TENANT_DECODED: Final = "stream2llm_tenant_decoded_tokens_total"
TENANT_REFUSED: Final = "stream2llm_tenant_quota_refusals_total"
REQUESTS_IN_FLIGHT: Final = "stream2llm_gateway_requests_in_flight"
RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
GENERATED: Final = "vllm:generation_tokens_total"
WANTED: Final = (
    *(TTFT, ACTIVE, ERRORS, OUTPUT, WORKER_SESSIONS, KV_BLOCKS, PREFILL_TOKENS, PREFILL_SESSIONS),
    *(TENANT_OPEN, TENANT_TTFT, TENANT_PREFILLED, TENANT_DECODED, TENANT_REFUSED),
    *(PREEMPTIONS, OFFLOAD_POOL, HANDOVER_BLOCKS, POLICY, RUNNING, WAITING, GENERATED),
    REQUESTS_IN_FLIGHT,
)
