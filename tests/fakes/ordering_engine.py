"""An engine's front end that is ordered grammars, and ends each order as the test says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput

from stream2llm.engine.output_stream import OutputStream


class OrderingEngine:
    """Stands for `stream2llm.engine.vllm_engine.Engine`."""

    def __init__(self) -> None:
        self.info = SimpleNamespace(vocab_size=10)
        # For the metrics of its worker.
        self.registry = CollectorRegistry()
        # What vLLM's front end raises.
        self.refusal: Exception | None = None
        self.orders: dict[str, SamplingParams] = {}
        self.ordered = asyncio.Event()
        self.aborted: list[str] = []
        self._streams: dict[str, OutputStream] = {}

    async def build_request(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams
    ) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return SimpleNamespace(request_id=request_id, params=params)

    async def submit(self, request: Any) -> OutputStream:
        self.orders[request.request_id] = request.params
        self.ordered.set()
        self._streams[request.request_id] = OutputStream()
        return self._streams[request.request_id]

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def finish(self, stop_reason: str | None = None) -> None:
        """All orders end: compiled, or failed with that stop reason."""
        finish_reason = "error" if stop_reason else "stop"
        for request_id, stream in self._streams.items():
            completion = CompletionOutput(
                index=0,
                text="",
                token_ids=[],
                cumulative_logprob=None,
                logprobs=None,
                finish_reason=finish_reason,
                stop_reason=stop_reason,
            )
            ended = RequestOutput(request_id, None, [0], None, [completion], finished=True)
            if stop_reason is None:
                ended.kv_transfer_params = {"backend": "xgrammar", "compile_s": 0.5}
            stream.put(ended)

    def num_observed(self, role: str) -> float:
        """How many compiled grammars are in the metrics."""
        labels = {"role": role, "backend": "xgrammar"}
        name = "stream2llm_grammar_compile_seconds_count"
        return self.registry.get_sample_value(name, labels) or 0
