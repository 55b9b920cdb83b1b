"""`SessionEngine` with vLLM's own grammar backends: what is sampled obeys the mask.

The fake executor samples by digest; where there is a mask, that digest chooses among the
tokens that it allows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.trace_context import TraceContext
from stream2llm.engine.stoppable_calls import StoppableCalls
from tests.scheduling.engine_settings import EngineSettings
from tests.scheduling.session_engine import SessionEngine
from tests.scheduling.slow_compiler import slow_compiler


def verified(
    manager: StructuredOutputManager, constraint: StructuredOutputsParams, backend: str = "xgrammar"
) -> StructuredOutputsParams:
    """What vLLM's front end makes of a constraint; raises its error."""
    config = manager.vllm_config.model_config
    params = SamplingParams(structured_outputs=constraint)
    tokenizer = cached_tokenizer_from_config(config)
    params.verify(config, None, StructuredOutputsConfig(backend=backend), tokenizer)  # type: ignore[arg-type]
    return constraint


def allowed(row: Any) -> list[int]:
    """The tokens that a row of a bitmask allows."""
    bits = np.unpackbits(np.ascontiguousarray(row).view(np.uint8), bitorder="little")
    return [int(each) for each in bits.nonzero()[0]]


def obey(result: ModelRunnerOutput, grammar: GrammarOutput | None) -> dict[str, list[int]]:
    """Samples what the masks allow; returns for each request the tokens that it might have had."""
    masks: dict[str, list[int]] = {}
    if grammar is not None:
        names = grammar.structured_output_request_ids
        masks = {
            name: allowed(row) for name, row in zip(names, grammar.grammar_bitmask, strict=True)
        }
    for name, tokens in masks.items():
        sampled = result.sampled_token_ids[result.req_id_to_index[name]]
        sampled[:] = [tokens[each % len(tokens)] for each in sampled]
    return masks


class MaskedEngine(SessionEngine):
    """An engine of a prefill worker."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        # Tokens that the last sampling step allowed, by request.
        self.masks: dict[str, list[int]] = {}

    @property
    def manager(self) -> StructuredOutputManager:
        return self.scheduler.structured_output_manager

    async def build_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        cache_salt: str = "",
        *,
        trace: TraceContext | None = None,
    ) -> EngineCoreRequest:
        if params.structured_outputs is not None:
            try:
                verified(self.manager, params.structured_outputs)
            except VLLMClientError as error:
                raise InvalidRequestError(f"the engine refuses it: {error}") from error
        return await super().build_request(request_id, prompt_token_ids, params, cache_salt)

    def receive(self, request: Request) -> None:
        """As EngineCore does it before its scheduler has the request."""
        if request.use_structured_output:
            self.manager.grammar_init(request)
        self.scheduler.add_request(request)

    async def abort(self, request_id: str) -> None:
        await self.end(request_id)

    def run_some(self, num_steps: int) -> None:
        """So many steps, of an engine that need not come to rest."""
        for _ in range(num_steps):
            self.step()

    def run_until(self, is_so: Callable[[], bool]) -> None:
        """Steps until that is so, however long a grammar takes that is compiled meanwhile."""
        while not is_so():
            self.step()

    def step(self) -> None:
        """One step, with masks."""
        if not self.scheduler.has_requests():
            return
        output = self.scheduler.schedule()
        grammar = self.scheduler.get_grammar_bitmask(output)
        result = self.executor.execute(output)
        self.masks |= obey(result, grammar)
        for told in self.scheduler.update_from_output(output, result).values():
            self.processor.process_outputs(told.outputs)


def slow_calls(engine: MaskedEngine) -> StoppableCalls:
    """What compiles the grammars of an engine, but for `SLOW`."""
    tokenizer = engine.manager.backend.compiler._tokenizer.serialize_json()  # type: ignore[union-attr]
    return StoppableCalls(f"{slow_compiler.__module__}:{slow_compiler.__name__}", tokenizer)


class ByHand:
    """A backend that compiles when the test says so, and then really."""

    def __init__(self, engine: MaskedEngine) -> None:
        self._compile: Callable[[Request], Any] = engine.manager._create_grammar
        self._waiting: list[tuple[Request, Future[Any]]] = []
        # What comes has to wait for a thread.
        self.is_busy = False
        engine.manager.executor.submit = self._submit  # type: ignore[method-assign, assignment]

    def _submit(self, _: Any, request: Request) -> Future[Any]:
        future = Future[Any]()
        if not self.is_busy:
            future.set_running_or_notify_cancel()
        self._waiting.append((request, future))
        return future

    def finish(self, error: Exception | None = None) -> None:
        """All that is under way is compiled, or fails."""
        for request, future in self._waiting:
            if error is None:
                future.set_result(self._compile(request))
            else:
                future.set_exception(error)
        self._waiting.clear()
