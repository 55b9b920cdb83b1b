"""Calls of the Python client that pages show have arguments that there are."""

from __future__ import annotations

import ast
import inspect
import re
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT, PyCF_ONLY_AST
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm import client
from stream2llm.client import AsyncClient, AsyncSession
from tests.unit.docs.test_claims import each_page, spans

# Methods by their names: the synchronous ones take the same.
METHODS: dict[str, Callable[..., Any]] = {
    name: getattr(owner, name)
    for owner, names in (
        (AsyncClient, ("session", "generate", "model_info", "server_info", "set_routers")),
        (AsyncSession, ("append", "update", "seal", "answer", "answers")),
    )
    for name in names
}
# Classes and functions; what passes its options on takes those of AsyncClient.
PASSED_ON = dict.fromkeys(("Client", "connect", "connect_sync"), AsyncClient)
NAMES = {name: getattr(client, name) for name in client.__all__} | PASSED_ON


def calls(text: str) -> Iterator[ast.Call]:
    """The calls in some Python; none in what is no Python."""
    try:
        tree = compile(text, "page", "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT | PyCF_ONLY_AST)
    except (SyntaxError, ValueError):
        return
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def unknown_arguments(text: str) -> set[str]:
    """Keyword arguments of calls of the client, as `session(messages)`, that do not exist."""
    found = set()
    for call in calls(text):
        match call.func:
            case ast.Name(id=name) if name in {**METHODS, **NAMES}:
                called = NAMES.get(name) or METHODS[name]
            case ast.Attribute(attr=name) if name in METHODS:
                called = METHODS[name]
            case _:
                continue
        if callable(called):
            known = inspect.signature(called).parameters
            found |= {f"{name}({each.arg})" for each in call.keywords if each.arg not in known}
    return found


@each_page
def test_arguments_that_a_page_shows_exist(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert not {each for text in [*blocks, *spans(page)] for each in unknown_arguments(text)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("session(messages=...)", {"session(messages)"}),
        (
            "await c.session(chat=[], sampling=SamplingParameters(top=1)).answer()",
            {"SamplingParameters(top)"},
        ),
        ("Client('a', tls=True, model='b')", {"Client(model)"}),
        ("Document('a', stays=True)", set()),
        ("session(", set()),
    ],
)
def test_arguments_that_there_are_not_are_found(text: str, wanted: set[str]) -> None:
    assert unknown_arguments(text) == wanted
