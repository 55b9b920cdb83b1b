"""`stream2llm up` and `stream2llm down`: start a cluster and keep it running; end it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import chosen_config
from stream2llm.cluster.layout import Factories
from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.system.clock import SystemClock

EXIT_FAILED = 1
READY_MARGIN_S = 60.0

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The cluster's YAML file; by default one for this machine without a GPU, which"
        " comes with the package (deploy/local-cpu.yaml of a checkout).",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Overrides the file's ray.address: 'local' starts its own Ray,"
        " 'auto' joins the one that runs here, host:port joins that one.",
    ),
]


def up(
    config: ConfigOption = None,
    address: AddressOption = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Start nothing: check configuration, model, engine arguments (with vLLM itself,"
            " some 10 s), ports, cores and memory, and print what would be started.",
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Answers that do not depend on concurrent requests: vLLM's batch-invariant"
            " mode, which costs speed and needs GPUs (docs/operations.md).",
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Return when everything is ready and leave it running; end it with"
            " `stream2llm down`. Needs --address auto or host:port.",
        ),
    ] = False,
) -> None:
    """Start a cluster (routers, prefill and decode workers) and keep it running.

    Prints the endpoints when everything is ready. Ctrl-C (or SIGTERM) drains:
    new sessions are refused, open ones may end, then everything is stopped. A
    second Ctrl-C stops at once. Also the entrypoint of a Ray job:

        ray job submit --working-dir . -- stream2llm up --config FILE --address auto

    Exit codes: 0 it was ended, or --check found nothing wrong; 1 it cannot
    start, or --check found something; 2 bad usage; 130 stopped before it was ready.
    """
    try:
        with signals_interrupt():
            configured = _configuration(config, address, deterministic=deterministic)
            if check:
                _check(configured)
            else:
                run(configured, detach=detach)
    except Stream2LLMError as error:
        _say(f"error: {error.message}", to_stderr=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        _say("stopped before it was ready")
        raise typer.Exit(128 + signal.SIGINT) from None


def down(config: ConfigOption = None, address: AddressOption = None) -> None:
    """End a cluster that `stream2llm up --detach` left running.

    Drains it as Ctrl-C would. The Ray cluster itself keeps running. A cluster
    with a Ray of its own ends where `stream2llm up` runs, by Ctrl-C or SIGTERM.
    Routers and workers that have no controller any more are ended at once.
    """
    try:
        configured = _configuration(config, address)
        if configured.ray.address == "local":  # of a Ray that `up` has joined
            configured = _configuration(config, "auto")
        try:
            cluster = Cluster.attach(configured)
        except UnavailableError as error:
            if error.reason != "NO_CLUSTER" or not (ended := Cluster.end_orphans(configured)):
                raise
            _say(f"ended without a controller: {', '.join(ended)}")
            return
        _end(cluster)
    except Stream2LLMError as error:
        _say(f"error: {error.message}", to_stderr=True)
        raise typer.Exit(EXIT_FAILED) from None


def run(config: ClusterConfig, *, detach: bool = False, factories: Factories | None = None) -> None:
    """Runs `up` with its options read."""
    clock = SystemClock()
    begin_s = clock.monotonic_s()

    def on_checked() -> None:
        dtype = config.prefilling[1].engine.get("dtype", "its own type")
        _say(f"starting {config.model_name} in {dtype}; an engine takes 15 to 60 s, or more")

    with Cluster.start(
        config, detach=detach, factories=factories, on_checked=on_checked
    ) as cluster:
        _say(f"logs: {cluster.log_dir}")
        if cluster.ray_token_file is not None:
            _say(f"token of its Ray: {cluster.ray_token_file}")
        longest_s = max(part.start_timeout_s for _, part in config.worker_sections)
        # Each start has a time limit; this limits their repetition.
        attempts = config.controller.max_start_failures
        cluster.wait_ready(longest_s * attempts + READY_MARGIN_S, _say_event)
        for number, router in enumerate(cluster.router_addresses):
            _say(f"router-{number}: {router}")
        for number, url in enumerate(cluster.gateway_urls):
            _say(f"gateway-{number}: {url} (OpenAI's API)")
        scheme = "http" if config.security.tls is None else "https"
        _say(
            f"controller: {scheme}://{cluster.http_address}"
            " (/status, /metrics, /policy, /sd for Prometheus)"
        )
        _say(f"ready after {clock.monotonic_s() - begin_s:.0f} s")
        if detach:
            cluster.detach()
            return
        _serve(cluster)


def _serve(cluster: Cluster) -> None:
    """Reports events until a signal arrives, then drains."""
    _say("Ctrl-C drains and stops; twice stops at once")
    try:
        cluster.follow(_say_event)
    except KeyboardInterrupt:
        _end(cluster)
    except UnavailableError as error:  # our Ray ends: open sessions have the time until then
        _say(f"error: {error.message}", to_stderr=True)
        _end(cluster)
        raise typer.Exit(EXIT_FAILED) from None


def _end(cluster: Cluster) -> None:
    seconds = cluster.config.router.drain_timeout_s
    _say(f"draining: open sessions have {seconds:.0f} s")
    try:
        cluster.drain()
    except KeyboardInterrupt:
        _say("stopping at once")
    cluster.stop(drain=False)
    _say("stopped")


def _check(config: ClusterConfig) -> None:
    from stream2llm.cli.check import check

    if not check(config, _say):
        raise typer.Exit(EXIT_FAILED)


def _configuration(
    path: Path | None, address: str | None, *, deterministic: bool = False
) -> ClusterConfig:
    config = chosen_config(path, address)
    return config.model_copy(update={"deterministic": True}) if deterministic else config


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C, even after Ray has replaced its handler."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _say_event(event: str) -> None:
    """With the time, as in the logs."""
    now = datetime.fromtimestamp(SystemClock().wall_s(), UTC).isoformat(timespec="milliseconds")
    _say(f"{now.replace('+00:00', 'Z')} {event}")


def _say(line: str, *, to_stderr: bool = False) -> None:
    print(for_terminal(line), file=sys.stderr if to_stderr else sys.stdout, flush=True)
