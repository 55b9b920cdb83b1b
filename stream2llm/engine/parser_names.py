"""The names of vLLM's parsers, for checking a configuration without importing vLLM.

They are read from the tables in its source by which it registers them.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import Literal

from stream2llm.api.errors import InvalidRequestError
from stream2llm.engine.arguments import vllm_folder

# What a parser reads out of an answer.
ParserKind = Literal["tool", "reasoning"]
_TABLES: dict[ParserKind, tuple[str, str]] = {
    "tool": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}


@cache
def registered_parsers(kind: ParserKind) -> frozenset[str]:
    """Returns the names that the installed vLLM registers; empty without a vLLM."""
    folder = vllm_folder()
    if folder is None:
        return frozenset()
    package, table = _TABLES[kind]
    tree = ast.parse((folder / package / "__init__.py").read_text(encoding="utf-8"))
    found = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table
    )
    return frozenset(ast.literal_eval(found))


def check_parser(kind: ParserKind, name: str, key: str) -> None:
    """Raises InvalidRequestError for a name that vLLM does not register; `key` has been set to it."""
    known = registered_parsers(kind)
    if known and name not in known:
        raise InvalidRequestError(
            f"{key}: vLLM has no {kind} parser {name!r}; it has {', '.join(sorted(known))}",
            reason="UNKNOWN_PARSER",
            field=key,
        )
