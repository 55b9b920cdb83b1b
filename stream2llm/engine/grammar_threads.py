"""Makes vLLM's grammar manager compile with a time limit, and measures how long it takes.

Runs inside vLLM's EngineCore process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

import vllm.envs
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import (
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from stream2llm.serving.system.clock import Clock

if TYPE_CHECKING:
    from stream2llm.engine.grammar_compiler import StoppableCompiler

# Grammars that are compiled in processes at once; the threads only wait.
_MAX_PROCESSES = 8
_MIB = 1 << 20


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
