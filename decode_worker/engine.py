"""A decode worker's engine: reads a prompt's KV and continues the answer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm.platforms import current_platform

from decode_worker.digest_check import BadKv
from decode_worker.fetch_orders import FinalOrder, LocalTokens, order_to_wire
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.token_step import TokenStep
from stream2llm.api.trace_context import TraceContext
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.engine_args import engine_args
from stream2llm.engine.kv_digest import DIGEST_KEY, BlockKeys
from stream2llm.engine.output_stream import OutputStream, only_output
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.vllm_engine import Engine, EngineInfo
from stream2llm.engine.vllm_sampling import (
    EngineSeed,
    engine_seed,
    to_vllm,
    token_step,
)
from stream2llm.serving.settings.worker_spec import WorkerSpec


async def start_decode_engine(spec: WorkerSpec, stats: EngineStats) -> Engine:
    """Starts vLLM as a KV consumer."""
    spec, settings = _settings(spec)
    return await Engine.start(spec, stats=stats, **settings)


def check_arguments(spec: WorkerSpec) -> None:
    """Raises vLLM's error when it rejects this worker's engine arguments."""
    spec, settings = _settings(spec)
    engine_args(spec, **settings).create_engine_config()


def _settings(spec: WorkerSpec) -> tuple[WorkerSpec, dict[str, Any]]:
    """Returns the spec without the arguments set here, and further arguments of `Engine.start`."""
    is_async = bool(spec.engine_args.get("async_scheduling", not current_platform.is_cpu()))
    name = "AsyncDecodeScheduler" if is_async else "DecodeScheduler"
    args = {key: v for key, v in spec.engine_args.items() if key != "async_scheduling"}
    settings = {
        "kv_transfer": {
            "kv_connector": "FirstTokenNixlConnector",
            "kv_connector_module_path": "decode_worker.connector",
            "kv_role": "kv_consumer",
        },
        "fixed_args": {
            "async_scheduling": is_async,
            "scheduler_cls": f"decode_worker.scheduler.{name}",
            # By the ranks of answer_order.py; of one tenant that is first come, first served.
            "scheduling_policy": "priority",
            "additional_config": spec.options.to_additional_config(),
        },
    }
    return dataclasses.replace(spec, engine_args=args), settings


def check_room(num_tokens: int, info: EngineInfo) -> None:
    """Raises InvalidRequestError when the KV of `num_tokens` tokens exceeds the KV memory."""
    capacity = info.num_kv_blocks * info.block_size
    if num_tokens > capacity:
        raise InvalidRequestError(
            f"prompt and answer need KV memory for {num_tokens} tokens; this decode worker has"
            f" it for {capacity}",
            reason="CONTEXT_TOO_LONG",
            field="sampling.max_tokens",
        )


async def begin_decode(
    engine: Engine,
    request_id: str,
    prompt_token_ids: list[int],
    sampling: SamplingParameters,
    kv_transfer_params: dict[str, Any],
    fetch_session_id: str = "",
    cache_salt: str = "",
    *,
    answer_tokens: int = 1,
    rank: int = 0,
    trace: TraceContext | None = None,
) -> OutputStream:
    """Starts the rest of an answer, of which the prompt's last `answer_tokens` tokens are the begin.

    vLLM's own span of the request is a child of `trace`. `sampling.max_tokens` counts the
    whole answer. KV is shared only with requests of the same `cache_salt`. Answers of a lower
    `rank` are taken up first (answer_order.py). After this has returned, the
    engine reads the KV or, when the request is aborted, notifies prefill that it
    will not.
    """
    max_tokens = _num_left(prompt_token_ids, answer_tokens, sampling)
    # The last token needs no KV.
    check_room(len(prompt_token_ids) + max_tokens - 1, engine.info)
    keys = b""
    if DIGEST_KEY in kv_transfer_params:  # of the tokens that prefill computed
        keys = BlockKeys(engine.info.block_size).to_wire(prompt_token_ids[:-1])
    params = to_vllm(
        sampling,
        max_tokens=max_tokens,
        seed=engine_seed(sampling.seed, EngineSeed.DECODE, answer_tokens - 1),
        extra_args={
            **order_to_wire(FinalOrder(fetch_session_id, keys)),
            "kv_transfer_params": kv_transfer_params,
            ANSWER_TOKENS_KEY: answer_tokens,
        },
        answer_tokens=answer_tokens,
    )
    request = await engine.build_request(
        request_id, prompt_token_ids, params, cache_salt, trace=trace
    )
    request.priority = rank
    return await engine.submit(request)


def _num_left(prompt_token_ids: list[int], answer_tokens: int, sampling: SamplingParameters) -> int:
    """Returns the maximum tokens that decode adds to the answer; raises InvalidRequestError."""
    if not 1 <= answer_tokens <= len(prompt_token_ids):
        raise InvalidRequestError(
            f"answer_tokens is {answer_tokens}; it must be at least 1, and at most the"
            f" {len(prompt_token_ids)} tokens of the prompt",
            field="answer_tokens",
        )
    if sampling.max_tokens is None or sampling.max_tokens <= answer_tokens:
        raise InvalidRequestError(
            f"must be more than the {answer_tokens} tokens that the answer has",
            field="sampling.max_tokens",
        )
    return sampling.max_tokens - answer_tokens


async def decode_steps(
    engine: Engine,
    request_id: str,
    stream: OutputStream,
    num_logprobs: int | None,
    on_local: Callable[[LocalTokens], None] = lambda _: None,
    on_bad_kv: Callable[[], None] = lambda: None,
) -> AsyncGenerator[TokenStep, None]:
    """Yields the rest of an answer. Closing the iterator early aborts the request.

    `on_local` is called before the first step with the prompt tokens that were here already,
    `on_bad_kv` before the failure when the KV that was read is not what prefill computed.
    """
    try:
        async for output in stream:
            local = LocalTokens.from_wire(output.kv_transfer_params)
            if local is not None:
                on_local(local)
            if BadKv.from_wire(output.kv_transfer_params) is not None:
                on_bad_kv()
            yield token_step(only_output(output), num_logprobs)
    finally:
        if not stream.finished:
            await asyncio.shield(engine.abort(request_id))
