"""Turns errors into one line on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.serving.observability.logs import for_terminal

BAD_USAGE = 2
REFUSED = 3
UNAVAILABLE = 4
INTERRUPTED = 130


def exit_code(error: Stream2LLMError) -> int:
    """Returns 4 when a retry may help without changing anything, 3 otherwise."""
    return UNAVAILABLE if isinstance(error, UnavailableError) else REFUSED


def describe(error: Stream2LLMError) -> str:
    """Returns the message, with the details that a program or a person can act on."""
    parts = [error.message, f"[{error.reason}]"]
    if error.field:
        parts.append(f"(field {error.field})")
    if error.retry_after_s is not None:
        parts.append(f"- try again in {error.retry_after_s:g} s")
    return for_terminal(" ".join(parts))


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """Turns our errors into an exit code, and Ctrl-C into 130."""
    try:
        yield
    except Stream2LLMError as error:
        typer.echo(f"error: {describe(error)}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        typer.echo("cancelled", err=True)
        raise typer.Exit(INTERRUPTED) from None
