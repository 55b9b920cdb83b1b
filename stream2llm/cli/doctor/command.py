"""The command: gathers, judges, prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from stream2llm.api.credentials import ClientSecurity
from stream2llm.api.errors import Stream2LLMError
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import CONTROLLER_VARIABLE, DEFAULT_CONTROLLER
from stream2llm.cli.doctor import diagnose, remote
from stream2llm.cli.doctor.cluster import check_room
from stream2llm.cli.doctor.facts import Finding, Level, Machine, Running
from stream2llm.cli.doctor.probes import machine, ports
from stream2llm.cli.numbers import finite
from stream2llm.cli.option_groups import expanded
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import chosen_config
from stream2llm.serving.actor.node_address import outward_address
from stream2llm.serving.observability.logs import for_terminal, one_line
from stream2llm.serving.system.clock import SystemClock

EXIT_PROBLEMS = 1


@expanded
def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The cluster's YAML file; by default that of `up`."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Overrides the file's ray.address: 'auto' or host:port looks at every node of"
            " that Ray, 'local' at this machine alone."
        ),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a running cluster's controller."
            f"  [default: {DEFAULT_CONTROLLER}, if one answers there]",
            envvar=CONTROLLER_VARIABLE,
        ),
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Prometheus, to compare its clock.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Leave out what takes seconds: vLLM's own check, NIXL, the tokenizer."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", min=0.01, callback=finite, help="Seconds to wait for an answer."),
    ] = 5.0,
    *,
    given: secure.Options,
) -> None:
    """Check machines, model, configuration and cluster.

    Starts nothing but probes. With a Ray to join (ray.address, --address) it looks
    at every node; with a controller it also asks the cluster. Each line is ok, a
    warning or a problem, with what to do. Exit codes: 0 there are no problems, 1
    there are.

    Example: stream2llm doctor

    Example: stream2llm doctor --config deploy/gpu-h100.yaml --address auto --json
    """
    try:
        security = given.security()
        configured = chosen_config(config, address)
    except Stream2LLMError as error:
        findings = [Finding(Level.PROBLEM, "configuration", error.message, "correct the file")]
    else:
        asked = controller or DEFAULT_CONTROLLER
        running = remote.find_cluster(
            asked,
            is_given=controller is not None or security.tls is not None,
            timeout_s=timeout_s,
            security=security,
        )
        running = _with_clocks(running, prometheus, timeout_s, security)
        findings = list(_examine(configured, running, fast=fast))
    typer.echo(_as_json(findings) if as_json else for_terminal(_as_text(findings)))
    if diagnose.worst(findings) is Level.PROBLEM:
        raise typer.Exit(EXIT_PROBLEMS)


def _with_clocks(
    running: Running, prometheus: str | None, timeout_s: float, security: ClientSecurity
) -> Running:
    clock, found = SystemClock(), []
    if running.status is not None:
        url = f"{security.scheme}://{running.controller}/status"
        found.append(remote.http_offset("the controller", url, clock, timeout_s, security))
    if prometheus is not None:  # not one of ours: it need not have our TLS
        url = f"http://{prometheus}/-/healthy"
        found.append(remote.http_offset("Prometheus", url, clock, timeout_s))
    return replace(running, offsets=tuple(each for each in found if each is not None))


def _examine(config: ClusterConfig, running: Running, *, fast: bool) -> Iterator[Finding]:
    is_here = config.ray.address == "local"
    machines: Sequence[Machine] = ()
    listeners = remote.listeners_of(running)
    if not is_here:
        try:
            nodes = remote.ask_nodes(config, SystemClock(), listeners, fast=fast)
        except Stream2LLMError as error:
            advice = "start Ray on the nodes (ray start), or correct ray.address or --address"
            yield Finding(Level.PROBLEM, "Ray", error.message, advice)
        else:
            machines = nodes.machines
            running = replace(running, offsets=(*running.offsets, *nodes.offsets))
            yield from nodes.findings
            yield from check_room(nodes.present, config)
    if not machines:
        here = machine(config, outward_address(), fast=fast)
        machines = (replace(here, ports=ports(listeners) if listeners else None),)
    today = datetime.fromtimestamp(SystemClock().wall_s(), UTC).date()
    yield from diagnose.judge(machines, config, running, today)
    yield from diagnose.configuration(
        config, on_this_machine=is_here, is_running=running.is_there, fast=fast
    )


def _as_json(findings: Sequence[Finding]) -> str:
    return json.dumps(
        {"worst": diagnose.worst(findings), "findings": list(map(asdict, findings))}, indent=2
    )


def _as_text(findings: Sequence[Finding]) -> str:
    count = Counter(each.level for each in findings)
    last = f"{count[Level.PROBLEM]} problems, {count[Level.WARNING]} warnings, {count[Level.OK]} ok"
    return "\n".join([*(line for each in findings for line in _lines(each)), "", last])


def _lines(finding: Finding) -> Iterator[str]:
    where = f"{finding.node}: " if finding.node else ""
    yield one_line(f"{finding.level:<8} {where}{finding.what}: {finding.text}")
    if finding.advice:
        yield one_line(f"         -> {finding.advice}")
