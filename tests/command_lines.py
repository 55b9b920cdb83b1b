"""Whether a command line of ours has commands and options that there are; runs nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

from typer import Context
from typer.main import get_command

from stream2llm.cli.main import FORWARDED, app, forwarded

_COMMANDS: Any = get_command(app)


@cache
def _forwarded(name: str) -> Any:
    return get_command(forwarded(name))


def parse(words: list[str]) -> None:
    """Raises an error of click's for a command or an option that there is not."""
    command, name = _COMMANDS, words.pop(0)
    assert name in command.commands, f"no command {name}"
    command = _forwarded(name) if name in FORWARDED else command.commands[name]
    while words and (subcommands := getattr(command, "commands", {})):
        name = words.pop(0)
        assert name in subcommands, f"no command {name}"
        command = subcommands[name]
    if words and not hasattr(command, "commands"):
        context = Context(command, info_name=name)
        command.make_parser(context).parse_args(args=words)
