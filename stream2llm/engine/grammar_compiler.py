"""Compiles XGrammar's grammars in processes that end at a time limit, and keeps them.

`StoppableCompiler` takes the place of XGrammar's compiler in vLLM's backend. A grammar that
would take for ever then costs its own session alone: no thread and no memory of the engine.

Runs inside vLLM's EngineCore process; `compiler` in the processes that it starts.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from threading import Lock
from typing import Any

import xgrammar as xgr

from stream2llm.engine.stoppable_calls import StoppableCalls

# A method of xgrammar.GrammarCompiler, and what it is called with.
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def compiler(tokenizer_json: str) -> Callable[[Call], str]:
    """Returns a function that compiles, and returns the compiled grammar as JSON."""
    tokenizer = xgr.TokenizerInfo.deserialize_json(tokenizer_json)
    # At most half of the machine for one grammar; what is compiled is kept by the caller.
    num_threads = max(1, min(8, (os.cpu_count() or 1) // 2))
    grammars = xgr.GrammarCompiler(tokenizer, max_threads=num_threads, cache_enabled=False)

    def compiled(call: Call) -> str:
        method, arguments, options = call
        return str(getattr(grammars, method)(*arguments, **options).serialize_json())

    return compiled


@cache
def _calls(tokenizer_json: str) -> StoppableCalls:
    """One server for all engines with this tokenizer; outside of tests there is one."""
    return StoppableCalls(f"{__name__}:{compiler.__name__}", tokenizer_json)


class GrammarCache:
    """Compiled grammars, up to so many bytes; the one that was not used for longest goes first.

    A grammar that several ask for at once is compiled once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[str, Future[Any]] = OrderedDict()

    def get(self, key: str, compile_it: Callable[[], Any]) -> Any:
        """Returns the grammar of `key`; raises what compiling raises, and forgets it."""
        with self._lock:
            known = self._kept.get(key)
            future = self._kept.setdefault(key, known or Future())
            self._kept.move_to_end(key)
        if known is None:
            self._fill(key, future, compile_it)
        return future.result()

    def _fill(self, key: str, future: Future[Any], compile_it: Callable[[], Any]) -> None:
        try:
            future.set_result(compile_it())
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            future.set_exception(error)
            return
        with self._lock:
            self._evict()

    def _evict(self) -> None:
        sizes = {
            key: each.result().memory_size_bytes for key, each in self._kept.items() if each.done()
        }
        excess = sum(sizes.values()) - self._max_bytes
        for key, num_bytes in sizes.items():
            if excess <= 0:
                return
            del self._kept[key]
            excess -= num_bytes


class StoppableCompiler:
    """The methods of xgrammar.GrammarCompiler that vLLM's backend calls.

    Each raises CallStoppedError and CallFailedError (stoppable_calls.py).
    """

    def __init__(self, tokenizer: xgr.TokenizerInfo, limit_s: float, max_cache_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._limit_s = limit_s
        self._calls = _calls(tokenizer.serialize_json())
        self._cache = GrammarCache(max_cache_bytes)

    def compile_json_schema(self, schema: str, **options: Any) -> xgr.CompiledGrammar:
        """Compiles a JSON schema."""
        return self._compiled("compile_json_schema", schema, **options)

    def compile_grammar(self, grammar: str) -> xgr.CompiledGrammar:
        """Compiles a grammar in EBNF."""
        return self._compiled("compile_grammar", grammar)

    def compile_lark(self, grammar: str) -> xgr.CompiledGrammar:
        """Compiles a grammar in Lark's syntax."""
        return self._compiled("compile_lark", grammar)

    def compile_regex(self, regex: str) -> xgr.CompiledGrammar:
        """Compiles a regular expression."""
        return self._compiled("compile_regex", regex)

    def compile_structural_tag(self, *parts: Any) -> xgr.CompiledGrammar:
        """Compiles a structural tag."""
        return self._compiled("compile_structural_tag", *parts)

    def _compiled(self, method: str, *arguments: Any, **options: Any) -> xgr.CompiledGrammar:
        call: Call = (method, arguments, options)
        compiled: xgr.CompiledGrammar = self._cache.get(repr(call), lambda: self._compile(call))
        return compiled

    def _compile(self, call: Call) -> xgr.CompiledGrammar:
        compiled = self._calls.call(call, self._limit_s)
        return xgr.CompiledGrammar.deserialize_json(compiled, self._tokenizer)
