"""The command line reference: one section per command of a typer command tree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from typer.main import get_command

from tools.reference.markdown import code, one_line, prose, table

PROGRAM = "stream2llm"
# Wider than any usage line, so that none is wrapped to this terminal.
_WIDTH = 1000

# typer's commands, whose class differs between its versions.
Command = Any


def sections(app: typer.Typer, forwarded: Mapping[str, Callable[[], typer.Typer]]) -> Iterator[str]:
    """Yields every command, depth first; `forwarded` has those that the tree only passes on."""
    root: Command = get_command(app)
    context = _context(root, PROGRAM, None)
    for name in root.list_commands(context):
        command = get_command(forwarded[name]()) if name in forwarded else root.commands[name]
        yield from _command(command, name, context)


def _command(command: Command, name: str, parent: typer.Context) -> Iterator[str]:
    context = _context(command, name, parent)
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield _section(command, context)
    for sub in subcommands.values():
        yield from _command(sub, sub.name, context)


def _section(command: Command, context: typer.Context) -> str:
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"## {context.command_path}", f"```\n{usage}\n```", _help(command.help or "")]
    rows = [_row(p.get_help_record(context), context.command_path) for p in command.params]
    if rows:
        parts.append(table(("parameter", "meaning"), rows))
    return "\n\n".join(parts)


def _row(record: tuple[str, str] | None, command_path: str) -> tuple[str, str]:
    names, text = record or ("a hidden parameter", "")
    if not text or text.startswith("["):
        raise ValueError(f"{names} of `{command_path}` has no help text")
    # Renderers disagree on how a pipe in code is written inside a table.
    return code(names.replace("|", " / ")), one_line(text)


def _help(text: str) -> str:
    """Returns the docstring, with lines of examples in code font."""
    lines = inspect.cleandoc(text).split("\n")
    marked = (
        f"Example:\n\n    {line.removeprefix('Example: ')}"
        if line.startswith("Example: ")
        else line
        for line in lines
    )
    return prose("\n".join(marked))


def _context(command: Command, name: str, parent: typer.Context | None) -> typer.Context:
    return typer.Context(command, info_name=name, parent=parent, terminal_width=_WIDTH)
