"""Structured outputs in a scheduler of ours: a mixin over vLLM's scheduler.

vLLM compiles a grammar as soon as it has the request, in a thread or in a process
(`GrammarThreads`). Here

- a request that only orders a grammar (structured_output.py) is answered when that is
  compiled; the backend's cache has it from then on. It never enters a queue;
- others wait for their grammar where their scheduler lets them: `grammar_compiled` is
  called between two steps;
- a grammar that cannot be compiled, or not in time, ends its request with the reason.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import TYPE_CHECKING, Any

import vllm.envs
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import (
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from stream2llm.engine.failed_request import BadGrammarError, BusyGrammarsError, failed_output
from stream2llm.engine.grammar_state import (
    compile_figures,
    is_compiled,
    is_grammar_order,
    take_up,
)
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.serving.system.clock import Clock, SystemClock

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base

    from stream2llm.engine.grammar_compiler import StoppableCompiler
else:
    _Base = object

# Grammars that are compiled in processes at once; the threads only wait.
_MAX_PROCESSES = 8
_MIB = 1 << 20
_log = logging.getLogger(__name__)
# An engine with nothing else to do waits so long between two looks at its inputs.
_WAIT_S = 0.005


class GrammarThreads:
    """Replaces how `manager` compiles, and measures it.

    A grammar of XGrammar's fails after `limit_s` seconds. Other backends compile in threads,
    which cannot be stopped: `are_bounded` is False.
    """

    def __init__(self, manager: StructuredOutputManager, limit_s: float, clock: Clock) -> None:
        config = manager.vllm_config.structured_outputs_config
        self.are_bounded = config.backend == "xgrammar"
        self._manager = manager
        self._limit_s = limit_s
        self._clock = clock
        self._lock = Lock()
        self._create: Callable[[Request], StructuredOutputGrammar] = manager._create_grammar
        manager._create_grammar = self.create
        if self.are_bounded:
            manager.executor = ThreadPoolExecutor(_MAX_PROCESSES, "grammar")

    def create(self, request: Request) -> StructuredOutputGrammar:
        """Compiles the request's grammar, and notes on it how many seconds that took."""
        began_s = self._clock.monotonic_s()
        structured: Any = request.structured_output_request
        kind, constraint = structured.structured_output_key
        compiler = self._stoppable_compiler()
        if compiler is not None and kind is StructuredOutputOptions.REGEX:
            # vLLM stops waiting for one after five seconds; from now on it is cached.
            compiler.compile_regex(constraint)
        grammar = self._create(request)
        structured.compile_s = self._clock.monotonic_s() - began_s
        return grammar

    def _stoppable_compiler(self) -> StoppableCompiler | None:
        """Returns that of the backend, which vLLM makes for the first request."""
        backend = self._manager.backend
        if not self.are_bounded or not isinstance(backend, XgrammarBackend):
            return None
        # Importing XGrammar takes seconds, which only engines with structured outputs need.
        from stream2llm.engine.grammar_compiler import StoppableCompiler

        with self._lock:
            if not isinstance(backend.compiler, StoppableCompiler):
                tokenizer = backend.compiler.compile_grammar('root ::= "a"').tokenizer_info
                max_bytes = vllm.envs.VLLM_XGRAMMAR_CACHE_MB * _MIB
                backend.compiler = StoppableCompiler(tokenizer, self._limit_s, max_bytes)
        return backend.compiler


class StructuredOutputMixin(_Base):
    """Precedes vLLM's scheduler among a class's bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._grammar_clock = SystemClock()
        options = WorkerOptions.from_additional_config(self.vllm_config.additional_config)
        self._compile_timeout_s = options.structured_output.compile_timeout_s
        self._grammar_threads = GrammarThreads(
            self.structured_output_manager, self._compile_timeout_s, SystemClock()
        )
        # By request id, with the instant when compiling began.
        self._compiling: dict[str, tuple[Request, float]] = {}
        # Last outputs that no step has, each with its client index.
        self._ends: list[tuple[int, EngineCoreOutput]] = []

    def add_request(self, request: Request) -> None:
        """Adds a request; one that only orders a grammar goes no further."""
        if request.use_structured_output:
            now_s = self._grammar_clock.monotonic_s()
            self._compiling[request.request_id] = request, now_s
        if not is_grammar_order(request):
            super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Also ends orders."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        ids = list(self._compiling if request_ids is None else request_ids)
        for request_id in ids:
            self._compiling.pop(request_id, None)
        base_ids = None if request_ids is None else ids
        finished: list[Request] = super().finish_requests(base_ids, finished_status)
        return finished

    def is_compiling(self, request_id: str) -> bool:
        """Whether the request's grammar is not there yet."""
        return request_id in self._compiling

    @property
    def num_waiting_for_grammar(self) -> int:
        """Number of the base class's requests whose grammar is not there yet."""
        return sum(request_id in self.requests for request_id in self._compiling)

    def take_compiled(self) -> None:
        """Lets go on what waited for a grammar; call it between two steps."""
        now_s = self._grammar_clock.monotonic_s()
        for request, began_s in list(self._compiling.values()):
            try:
                if self._is_compiled(request, now_s - began_s):
                    del self._compiling[request.request_id]
                    self._go_on(request)
            except Exception as error:
                self.end_failed(request, error)

    def _is_compiled(self, request: Request, waited_s: float) -> bool:
        ends_itself = self._grammar_threads.are_bounded
        return is_compiled(request, waited_s, self._compile_timeout_s, ends_itself=ends_itself)

    def _go_on(self, request: Request) -> None:
        if not is_grammar_order(request):
            self.grammar_compiled(request)
            return
        output = EngineCoreOutput(
            request.request_id,
            [],
            finish_reason=FinishReason.STOP,
            kv_transfer_params=compile_figures(request),
        )
        self._ends.append((request.client_index, output))

    def grammar_compiled(self, request: Request) -> None:
        """The request's grammar is compiled: by default the request may be scheduled now."""
        take_up(self.structured_output_manager, request)
        request.status = RequestStatus.WAITING
        self.deferred_waiting.discard(request)

    def end_failed(self, request: Request, error: Exception) -> None:
        """Ends a request; call it while its exception is being handled."""
        # What a client sends, and load, need no traceback.
        is_clients = isinstance(error, BadGrammarError | BusyGrammarsError)
        _log.log(
            logging.WARNING if is_clients else logging.ERROR,
            "request_failed request_id=%s error=%s",
            request.request_id,
            error,
            exc_info=not is_clients,
        )
        self._ends.append((request.client_index, failed_output(request, error)))
        self.finish_requests([request.request_id], RequestStatus.FINISHED_ERROR)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Leaves the grammar to `take_compiled`: the base class would not replay the answer."""
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            return False
        return bool(super()._handle_blocked_waiting_request(request))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Runs the base class's step; waits a little if only grammars are awaited."""
        if not (self.running or self.waiting or self.kv_holding_waiting):
            self._wait_for_a_grammar()
        return super().schedule(*args, **kwargs)

    def _wait_for_a_grammar(self) -> None:
        """Without it an idle engine would spin until the grammar is there."""
        grammars = [
            request.structured_output_request._grammar for request, _ in self._compiling.values()
        ]
        futures = [each for each in grammars if isinstance(each, Future)]
        if futures:
            wait(futures, _WAIT_S, return_when=FIRST_COMPLETED)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Returns the base class's outputs, and those of requests that have ended here."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for client, output in self._ends:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._ends.clear()
        return outputs

    @property
    def num_ends_awaited(self) -> int:
        """Number of requests that need a step for their grammar, or to be said to have ended."""
        return len(self._compiling) + len(self._ends)

    def get_num_unfinished_requests(self) -> int:
        """Counts the base class's requests, and those that wait for a grammar or their end."""
        return int(super().get_num_unfinished_requests()) + self.num_ends_awaited
