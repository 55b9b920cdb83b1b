"""`stream2llm ready`: asks a router or a gateway whether it serves, for probes and scripts."""

from __future__ import annotations

from typing import Annotated

import typer

from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_ROUTER, RouterOption
from stream2llm.cli.exits import UNAVAILABLE, errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal


@expanded
def ready(
    address: RouterOption = DEFAULT_ROUTER,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")
    ] = 5.0,
    absent_ok: Annotated[
        bool,
        typer.Option(
            "--absent-ok",
            help="Exit with 0 also where nothing listens: for the probe of a pod in which nothing"
            " has been started yet.",
        ),
    ] = False,
    gateway: Annotated[
        bool,
        typer.Option("--gateway", help="The address is a gateway's: ask its /health over HTTP."),
    ] = False,
    *,
    given: secure.TlsOptions,
) -> None:
    """Tell by the exit code whether a router or gateway serves.

    Asks a router's gRPC health service (grpc.health.v1), as load balancers do: it
    serves while it has a ready worker of each role and does not drain. A gateway also
    needs a router. Exit codes: 0 it serves, 4 it does not, or gives no answer.

    Example: stream2llm ready --address 127.0.0.1:50051
    """
    with errors_as_exits():
        from stream2llm.serving.actor.front_health import Health, health_of, health_of_gateway

        ask = health_of_gateway if gateway else health_of
        health = ask(address, timeout_s, given.tls())
        typer.echo(for_terminal(f"{address}: {health.value}"))
        if health is Health.ABSENT and absent_ok:
            return
        if health is not Health.SERVING:
            raise typer.Exit(UNAVAILABLE)
