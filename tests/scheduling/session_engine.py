"""What `PrefillSession` uses of an engine, over the real scheduler and vLLM's output processor.

Everything of a prefill worker between the service and the model, in one
process: only the executor is fake, and a step is made when the test says so.
"""

from __future__ import annotations

import msgspec
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.request import Request, RequestStatus

from prefill_worker.local_engine import core_request
from stream2llm.api.trace_context import TraceContext
from stream2llm.engine.output_stream import OutputStream
from stream2llm.engine.vllm_engine import EngineInfo
from tests.scheduling.engine_settings import EngineSettings, block_hasher, create_scheduler
from tests.scheduling.executor import FakeExecutor


class SessionEngine:
    """Stands for `stream2llm.engine.vllm_engine.Engine`."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.scheduler = create_scheduler(settings)
        self.executor = FakeExecutor(
            settings.num_blocks, settings.block_size, settings.offload_pool_blocks
        )
        self.processor = OutputProcessor(None, log_stats=False)
        self._hasher = block_hasher(settings)

    @property
    def info(self) -> EngineInfo:
        settings = self.settings
        return EngineInfo(
            max_model_len=settings.max_model_len,
            num_kv_blocks=settings.num_blocks - 1,
            block_size=settings.block_size,
            vocab_size=50_000,
        )

    async def build_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        cache_salt: str = "",
        *,
        trace: TraceContext | None = None,
    ) -> EngineCoreRequest:
        return core_request(request_id, prompt_token_ids, params, cache_salt)

    async def submit(self, request: EngineCoreRequest) -> OutputStream:
        stream = OutputStream()
        self.processor.add_request(request, None, None, 0, stream)
        await self.send(request)
        return stream

    async def send(self, request: EngineCoreRequest) -> None:
        # Another process: nothing is shared with the front end.
        tokens = list(request.prompt_token_ids or ())
        received = msgspec.structs.replace(request, prompt_token_ids=tokens)
        self.receive(Request.from_engine_core_request(received, self._hasher))

    def receive(self, request: Request) -> None:
        """In EngineCore."""
        self.scheduler.add_request(request)

    async def end(self, request_id: str) -> None:
        self.processor.abort_requests([request_id], internal=True)
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """One step; its outputs go to their streams at once."""
        if not self.scheduler.has_requests():
            return
        output = self.scheduler.schedule()
        result = self.executor.execute(output)
        for told in self.scheduler.update_from_output(output, result).values():
            self.processor.process_outputs(told.outputs)

    def run(self, max_steps: int = 2000) -> None:
        """Steps until there is nothing to compute."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError(f"still busy after {max_steps} steps")
