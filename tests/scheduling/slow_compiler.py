"""A compiler of grammars that never ends one of them; what it imports has no vLLM."""

from __future__ import annotations

from collections.abc import Callable

from stream2llm.engine.grammar_compiler import Call, compiler

# The regular expression that takes for ever.
SLOW = "[xy]+"


def slow_compiler(tokenizer_json: str) -> Callable[[Call], str]:
    """As `grammar_compiler.compiler`, but for that one."""
    real = compiler(tokenizer_json)

    def compiled(call: Call) -> str:
        while SLOW in call[1]:
            pass
        return real(call)

    return compiled
