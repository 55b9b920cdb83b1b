"""What the commands of the examples have in common: a cluster, and how they end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.system.signals import catch_signals

if TYPE_CHECKING:
    from stream2llm.cluster.cluster import Cluster
    from stream2llm.cluster.config import ClusterConfig

# Everything else is imported when the signals are caught: importing takes
# seconds, and Ctrl-C shall be quiet then too.

INTERRUPTED = 130
# Bounds against a hang, far above what a busy machine of two cores takes.
READY_TIMEOUT_S = 600.0
ASK_TIMEOUT_S = 900.0

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="HOST:PORT of a running cluster's router; by default one is started."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration of the cluster to start; by default that of `up`."
    ),
]
Say = Callable[[str], None]


def say(line: str) -> None:
    """Prints it at once, also into a pipe."""
    print(for_terminal(line), flush=True)


@contextmanager
def errors_as_exits(name: str) -> Iterator[None]:
    """Exits with 1 after an error of ours, 130 after Ctrl-C."""
    from stream2llm.api.errors import Stream2LLMError

    try:
        yield
    except (Stream2LLMError, TimeoutError) as error:
        print(for_terminal(f"{name} failed: {str(error) or 'it took too long'}"), file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("\ninterrupted; everything that was started is stopped", flush=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def own_cluster(config: ClusterConfig, say: Say) -> Iterator[Cluster]:
    """A cluster on this machine for as long as the block, on ports that are free."""
    from stream2llm.cluster.cluster import Cluster
    from stream2llm.cluster.config import on_free_ports

    say(f"starting a cluster with {config.model_name} on this machine")
    with Cluster.start(on_free_ports(config)) as cluster:
        catch_signals()  # Ray has put handlers of its own in place
        cluster.wait_ready(READY_TIMEOUT_S, say)
        yield cluster
        say("stopping the cluster")


def ask_a_cluster(
    name: str,
    address: str | None,
    config: Path | None,
    ask: Callable[[str, str], Coroutine[Any, Any, object]],
) -> None:
    """Runs `ask` with the router's address and the model, at a given cluster or one of our own."""
    catch_signals()
    with errors_as_exits(name):
        from stream2llm.cluster.config_file import chosen_config

        tree = chosen_config(config)
        if address is not None:
            asyncio.run(_in_time(ask(address, tree.model)))
            return
        with own_cluster(tree, say) as cluster:
            asyncio.run(_in_time(ask(cluster.router_addresses[0], tree.model)))


async def _in_time(asking: Coroutine[Any, Any, object]) -> None:
    async with asyncio.timeout(ASK_TIMEOUT_S):
        await asking
