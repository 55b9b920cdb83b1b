"""A prefill worker's engine: takes sessions of growing token sequences, samples first tokens.

Adapter between `PrefillService` and vLLM. A session's events travel to
`PrefillScheduler` as requests with one and the same id, whose
`SamplingParams.extra_args` describe the event.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine import EngineCoreRequest

from prefill_worker.kv_transfer import SWAP_ONLY, kv_transfer
from prefill_worker.limits import check_answer, check_context
from prefill_worker.policy_loading import find_policies
from prefill_worker.session_state import WIRE_KEY, ContextEvent
from prefill_worker.settings import require_settings
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.handover import HANDOVER_KEY
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.tenant import ONE_TENANT, TenantShare
from stream2llm.api.trace_context import TraceContext
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.engine_args import engine_args, nixl_options
from stream2llm.engine.output_stream import OutputStream, only_output
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.vllm_sampling import (
    EngineSeed,
    engine_seed,
    min_tokens_left,
    to_vllm,
)
from stream2llm.serving.sessions.request_check import check_token_ids
from stream2llm.serving.settings.worker_spec import WorkerSpec
from stream2llm.serving.system.clock import Clock, SystemClock

# Engine arguments that our scheduler requires.
FIXED_ARGS = {
    "scheduler_cls": "prefill_worker.scheduler.PrefillScheduler",
    "async_scheduling": False,
    "scheduler_reserve_full_isl": False,
}

MAX_REVISION = 2**63 - 1

# Makes the connector keep the blocks for a decode worker when the request ends.
_HAND_OVER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


async def start_prefill_engine(spec: WorkerSpec, stats: EngineStats) -> Engine:
    """Starts vLLM with our scheduler, and on a prefill worker as a KV producer."""
    find_policies(spec.options.prefill.import_paths)  # EngineCore's errors are hard to find
    return await Engine.start(spec, stats=stats, **_settings(spec))


def check_arguments(spec: WorkerSpec) -> None:
    """Raises the error of vLLM or of our scheduler if it rejects this worker's arguments."""
    find_policies(spec.options.prefill.import_paths)
    require_settings(engine_args(spec, **_settings(spec)).create_engine_config())


def _settings(spec: WorkerSpec) -> dict[str, Any]:
    """Returns the arguments of `Engine.start` and `engine_args` beside the spec."""
    options = spec.options
    swaps = options.prefill.swaps
    if spec.role == "mixed":  # no KV leaves it
        transfer = SWAP_ONLY if swaps else None
    else:
        transfer = kv_transfer(nixl_options(spec), swaps=swaps)
    return {
        "kv_transfer": transfer,
        "fixed_args": {**FIXED_ARGS, "additional_config": options.to_additional_config()},
    }


@dataclass(frozen=True, slots=True)
class PrefillOutput:
    """One output of a session: its progress, or a token of its answer.

    The first token comes with the last progress; without a hand-over more may follow.
    """

    # From `SessionState.progress`; empty behind the first token.
    progress: dict[str, Any]
    sampled: CompletionOutput | None
    # Transfer parameters for the decode worker; None when no decode worker shall read the KV.
    handover: dict[str, Any] | None
    # KV to prefetch before the seal, from `Offering`; such an output holds nothing else.
    offer: dict[str, Any] | None = None


class PrefillSession:
    """One session at the engine. Not safe for concurrent use."""

    def __init__(
        self,
        engine: Engine,
        request_id: str,
        sampling: SamplingParameters,
        cache_salt: str = "",
        *,
        tenant: TenantShare = ONE_TENANT,
        trace: TraceContext | None = None,
        ttft_slo_ms: int = 0,
        clock: Clock | None = None,
    ) -> None:
        """KV is shared only with sessions of the same `cache_salt`; vLLM's own span joins `trace`.

        The first token is due `ttft_slo_ms` after the seal; 0: no deadline.
        """
        self._ttft_slo_ms = ttft_slo_ms
        self._clock = clock or SystemClock()
        self._trace = trace
        self._engine = engine
        self._request_id = request_id
        self._sampling = sampling
        self._cache_salt = cache_salt
        self._tenant = tenant
        self._first_request: EngineCoreRequest | None = None
        self._num_tokens = 0
        # Revision of the last splice.
        self._revision = 0
        self.outputs: OutputStream | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report; None reports no logprobs."""
        return self._sampling.logprobs

    async def splice(
        self,
        revision: int,
        keep_tokens: int,
        token_ids: list[int],
        *,
        seal: bool = False,
        hand_over: bool = False,
        stable_tokens: int = 0,
        ttft_left_ms: int = 0,
        answer_tokens: int = 0,
        answer_max_tokens: int = 0,
    ) -> None:
        """Makes the sequence its first `keep_tokens` tokens and `token_ids`.

        KV of the first `stable_tokens` may be offered to decode before the seal.

        With `seal` the sequence is final, and the first token is sampled as soon as
        all is computed; it is due in `ttft_left_ms`, if that is not 0. It continues an
        answer of which the last `answer_tokens` tokens are the begin. With
        `answer_max_tokens` the answer goes on here until it has so many, those included.
        Raises InvalidRequestError, and changes nothing, when an argument is invalid, or when
        the sequence would not leave the model room for an answer or not fit into the
        engine's KV memory.
        """
        self._check(revision, keep_tokens, token_ids, seal, stable_tokens, answer_tokens)
        num_to_sample = 1
        if answer_max_tokens and hand_over:
            raise InvalidRequestError(
                "an answer that goes on here is not handed over", field="seal.answer_max_tokens"
            )
        if answer_max_tokens:
            num_to_sample = answer_max_tokens - answer_tokens
            check_answer(keep_tokens + len(token_ids), num_to_sample, self._engine.info)
        self._revision = revision
        self._num_tokens = keep_tokens + len(token_ids)
        begins = self._first_request is None
        event = ContextEvent(
            revision,
            keep_tokens,
            seal,
            begins,
            stable_tokens,
            self._tenant,
            ttft_slo_ms=self._ttft_slo_ms,
            deadline_ms=self._deadline_ms(ttft_left_ms),
            answers=answer_max_tokens > 0,
        )
        extra_args = _extra_args(event, hand_over, answer_tokens)
        if self._first_request is not None:
            request = self._event_request(token_ids, extra_args, answer_tokens, num_to_sample)
            await self._engine.send(request)
        elif token_ids:
            await self._begin(token_ids, extra_args, answer_tokens, num_to_sample)

    def _deadline_ms(self, left_ms: int) -> int:
        """By the monotonic clock, which is that of EngineCore too: one machine has one."""
        return int(1000 * self._clock.monotonic_s()) + left_ms if left_ms else 0

    async def cancel(self) -> None:
        """Frees the session's blocks, also those that wait for a decode worker."""
        if self._first_request is not None:
            await self._engine.end(self._request_id)

    def _check(
        self,
        revision: int,
        keep_tokens: int,
        token_ids: list[int],
        seal: bool,
        stable_tokens: int,
        answer_tokens: int,
    ) -> None:
        if not self._revision < revision <= MAX_REVISION:
            raise InvalidRequestError(
                f"revision is {revision}; after {self._revision} it must be larger, and at most"
                f" {MAX_REVISION}",
                field="splice.revision",
            )
        check_token_ids(token_ids, self._engine.info.vocab_size, "splice.token_ids")
        if keep_tokens > self._num_tokens:
            raise InvalidRequestError(
                f"keep_tokens is {keep_tokens}, the sequence has {self._num_tokens} tokens",
                field="splice.keep_tokens",
            )
        num_tokens = keep_tokens + len(token_ids)
        check_context(num_tokens, self._engine.info)
        if stable_tokens > num_tokens:
            raise InvalidRequestError(
                f"stable_tokens is {stable_tokens}, the sequence has {num_tokens} tokens",
                field="splice.stable_tokens",
            )
        if seal and not num_tokens:
            raise InvalidRequestError("the context is empty", field="seal")
        if answer_tokens and answer_tokens >= num_tokens:
            raise InvalidRequestError(
                f"answer_tokens is {answer_tokens}, the sequence has {num_tokens} tokens",
                field="seal.answer_tokens",
            )

    async def _begin(
        self,
        token_ids: list[int],
        extra_args: dict[str, Any],
        answer_tokens: int,
        num_to_sample: int,
    ) -> None:
        params = to_vllm(
            self._sampling,
            max_tokens=num_to_sample,
            seed=engine_seed(self._sampling.seed, EngineSeed.PREFILL, answer_tokens),
            extra_args=extra_args,
            answer_tokens=answer_tokens,
        )
        request = await self._engine.build_request(
            self._request_id, token_ids, params, self._cache_salt, trace=self._trace
        )
        self._first_request = request
        self.outputs = await self._engine.submit(request)

    def _event_request(
        self,
        token_ids: list[int],
        extra_args: dict[str, Any],
        answer_tokens: int,
        num_to_sample: int,
    ) -> EngineCoreRequest:
        first = self._first_request
        assert first is not None
        params = copy.copy(first.sampling_params)
        params.extra_args = extra_args
        params.max_tokens = num_to_sample
        params.min_tokens = min_tokens_left(self._sampling, num_to_sample, answer_tokens)
        params.structured_outputs = None  # else each event would compile it anew
        return msgspec.structs.replace(first, prompt_token_ids=token_ids, sampling_params=params)


def _extra_args(event: ContextEvent, hand_over: bool, answer_tokens: int) -> dict[str, Any]:
    extra: dict[str, Any] = {WIRE_KEY: event.to_wire(), ANSWER_TOKENS_KEY: answer_tokens}
    if event.seal and hand_over:
        extra["kv_transfer_params"] = dict(_HAND_OVER)
    return extra


async def prefill_outputs(stream: OutputStream) -> AsyncIterator[PrefillOutput]:
    """Yields a session's outputs."""
    async for output in stream:
        yield _translate(output)


def _translate(output: RequestOutput) -> PrefillOutput:
    params = dict(output.kv_transfer_params or {})
    if HANDOVER_KEY in params:
        return PrefillOutput({}, None, None, params[HANDOVER_KEY])
    progress = params.pop(WIRE_KEY, {})
    completion = only_output(output)
    sampled = completion if output.finished or completion.token_ids else None
    handover = params if params.get("do_remote_prefill") else None
    return PrefillOutput(progress, sampled, handover)
