"""Whatever a command or the demo prints for a person has no control characters of others in it.

Names of files, messages of servers and answers come from elsewhere; an escape sequence among them
could rewrite what a terminal shows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.documents import Way
from examples.demo.run import Snapshot
from examples.demo.view import LinesView
from stream2llm.cli import generate, output
from stream2llm.cli.trace_import import _Reporter
from stream2llm.client import OversizedDocument

ROOT = Path(__file__).parents[3]
FILES = sorted([*ROOT.glob("stream2llm/cli/**/*.py"), *ROOT.glob("examples/**/*.py")])
# `_shown` leaves text for a file as it is; JSON has escapes of its own; `describe` escapes.
SAFE = {"for_terminal", "_shown", "dumps", "_as_json", "describe"}
EVIL = "evil\x1b[2J\x9b2Jname"


def is_safe(node: ast.expr) -> bool:
    """Whether nothing that comes from elsewhere is printed as it is."""
    match node:
        case ast.Constant():
            return True
        case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)):
            return name in SAFE
        case ast.JoinedStr(parts):
            return all(map(is_safe, parts))
        case ast.FormattedValue(value):
            return is_safe(value)
        case ast.IfExp(_, yes, no):
            return is_safe(yes) and is_safe(no)
        case ast.BoolOp(_, values):
            return all(map(is_safe, values))
    return False


def printed(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls of `print` and `typer.echo` with something to print."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and node.args
            and ast.unparse(node.func) in ("print", "typer.echo")
        ):
            yield node


def test_every_call_that_prints_escapes_what_it_prints() -> None:
    calls = [(path, call) for path in FILES for call in printed(ast.parse(path.read_text()))]
    assert len(calls) > 40
    unsafe = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path, call in calls
        if not is_safe(call.args[0])
    ]
    assert not unsafe, "\n".join(unsafe)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(name)", False),
        ("print(f'left out: {name}')", False),
        ("typer.echo(str(path), err=True)", False),
        ("print(x if y else for_terminal(x))", False),
        ("print('done')", True),
        ("typer.echo(f'error: {describe(error)}')", True),
        ("typer.echo(for_terminal(f'left out: {name}'))", True),
        ("print(logs.for_terminal(x) or 'nothing')", True),
    ],
)
def test_a_call_that_does_not_is_found(code: str, expected: bool) -> None:
    (call,) = printed(ast.parse(code))
    assert is_safe(call.args[0]) is expected


def test_names_and_messages_lose_their_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = output.Text(output.Watcher())
    sink.event(OversizedDocument(2, 0, EVIL, "refuse", "CONTEXT_TOO_LONG", 7, 0))
    output.warn(EVIL)
    report: Any = _Reporter()
    report(EVIL)
    view = LinesView()
    view.begin(Way.APPEND)
    view.show(Snapshot(Way.APPEND, news=EVIL, answer=EVIL))
    view.end()
    said = capsys.readouterr()
    shown = said.out + said.err
    assert shown.count("name") >= 5
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_an_input_that_cannot_be_read_is_named_without_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream2llm.cli.sources import SourceError

    class Sources:
        def check(self) -> None:
            raise SourceError(f"{EVIL} cannot be read")

    arguments: list[Any] = [None, Sources(), None, None]
    with pytest.raises(BaseException, match="2"):
        generate._run(*arguments)
    assert "\x1b" not in capsys.readouterr().err
