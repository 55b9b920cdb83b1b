"""Facts from elsewhere: the controller, the clock of an HTTP server, the nodes of a Ray."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import (
    InvalidRequestError,
    NotPermittedError,
    Stream2LLMError,
    UnauthenticatedError,
)
from stream2llm.api.loopback import host_of, is_loopback
from stream2llm.cli.addresses import NO_ANSWER, NOT_A_CONTROLLER, Controller
from stream2llm.cli.doctor.facts import ClockOffset, Finding, Level, Machine, Ports, Running
from stream2llm.cli.doctor.probes import machine, ports
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.room import Node
from stream2llm.serving.http.own_http import open_url
from stream2llm.serving.system.clock import Clock, SystemClock

# HTTP's dates have whole seconds, cut off: half a second is added.
_DATE_HALF_S = 0.5
_CLOCK_ROUNDS = 3
NODE_TIMEOUT_S = 120.0


def find_cluster(
    controller: str, *, is_given: bool, timeout_s: float, security: ClientSecurity
) -> Running:
    """Asks the controller; that none is there is a problem only where the address was given."""
    try:
        status = Controller(controller, security, timeout_s).ask("/status", "replicas")
    except Stream2LLMError as error:
        is_there = _is_there(error)
        problem = error.message if is_given or is_there else ""
        return Running(controller, None, problem, _advice(error), is_there=is_there)
    return Running(controller, status, is_there=True)


def _is_there(error: Stream2LLMError) -> bool:
    """Whether a controller has refused the request, or hung up on it as one with TLS does."""
    if error.reason == NO_ANSWER:
        reason = getattr(error.__cause__, "reason", error.__cause__)
        return isinstance(reason, ssl.SSLError | ConnectionResetError)
    # InvalidRequestError: not sent, because credentials do not leave this machine in plain text.
    return error.reason != NOT_A_CONTROLLER and not isinstance(error, InvalidRequestError)


def _advice(error: Stream2LLMError) -> str:
    """What to do; "" where the message says it."""
    if isinstance(error, UnauthenticatedError | NotPermittedError):
        return "give a key with the scope read: --api-key-file, or STREAM2LLM_API_KEY"
    if error.reason == NOT_A_CONTROLLER:
        return "give the address that stream2llm up printed: --controller"
    return ""


def http_offset(
    who: str, url: str, clock: Clock, timeout_s: float, security: ClientSecurity = PLAIN
) -> ClockOffset | None:
    """Compares the Date of an answer; None for a server that gives none."""
    began_s = clock.wall_s()
    try:
        with open_url(url, timeout_s, security) as answer:
            date = answer.headers.get("Date")
        ended_s = clock.wall_s()
        there_s = parsedate_to_datetime(date).timestamp() + _DATE_HALF_S
    except (OSError, HTTPException, ValueError, TypeError):
        return None
    half_s = (ended_s - began_s) / 2
    return ClockOffset(who, there_s - (began_s + half_s), half_s + _DATE_HALF_S)


class NodeProbe:
    """Runs as an actor on each node."""

    def facts(self, config: ClusterConfig, address: str, *, fast: bool) -> Machine:
        """The facts of its machine, which others reach at `address`."""
        return machine(config, address, fast=fast)

    def ports(self, listeners: dict[str, str]) -> Ports:
        """Which of the cluster's listeners accept a connection from there."""
        return ports(listeners)

    def wall_s(self) -> float:
        """Its clock."""
        return SystemClock().wall_s()


@dataclass(frozen=True, slots=True)
class Nodes:
    """Facts and clock offsets of the nodes of a Ray."""

    machines: tuple[Machine, ...]
    offsets: tuple[ClockOffset, ...]
    # One for each node that gave no answer.
    findings: tuple[Finding, ...]
    # What Ray itself knows of them.
    present: tuple[Node, ...] = ()


def listeners_of(running: Running) -> dict[str, str]:
    """What the parts of a running cluster listen on, as host:port, by what it is."""
    if running.status is None:
        return {}
    found = {"the controller": str(running.status.get("http_address", ""))}
    for each in running.status["replicas"]:
        address = each.get("address") or {}
        found[f"{each['name']}'s gRPC"] = address.get("grpc_address", "")
        found[f"{each['name']}'s metrics"] = address.get("metrics_address", "")
    return {name: address for name, address in found.items() if address}


def ask_nodes(
    config: ClusterConfig, clock: Clock, listeners: dict[str, str], *, fast: bool
) -> Nodes:
    """Joins the configured Ray and looks at each node; raises UnavailableError without a Ray.

    Each node tries to connect with `listeners`, those on loopback left out.
    """
    import ray

    from stream2llm.cluster import ray_nodes, ray_runtime

    ray_runtime.connect(config, "", "")
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        beyond = {n: at for n, at in listeners.items() if not is_loopback(host_of(at))}
        probes = [_Asked(node, _probe_on(node), config, beyond, fast) for node in alive]
        nodes = _gathered([each.answer(clock) for each in probes])
        return replace(nodes, present=ray_nodes.ray_state().nodes)
    finally:
        ray_runtime.disconnect()


def _probe_on(node: dict[str, Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    actor: Any = ray.remote(num_cpus=0, max_restarts=0)(NodeProbe)
    return actor.options(scheduling_strategy=place).remote()


class _Asked:
    """One node; all are asked before the first answer is waited for."""

    def __init__(
        self,
        node: dict[str, Any],
        probe: Any,
        config: ClusterConfig,
        listeners: dict[str, str],
        fast: bool,
    ) -> None:
        self._address = str(node["NodeManagerAddress"])
        self._probe = probe
        self._facts = probe.facts.remote(config, self._address, fast=fast)
        self._ports = probe.ports.remote(listeners) if listeners else None

    def answer(self, clock: Clock) -> tuple[Machine, ClockOffset] | Finding:
        import ray

        try:
            facts: Machine = ray.get(self._facts, timeout=NODE_TIMEOUT_S)
            if self._ports is not None:
                facts = replace(facts, ports=ray.get(self._ports, timeout=NODE_TIMEOUT_S))
            return replace(facts, node=self._address), self._offset(clock)
        except ray.exceptions.RayError as error:
            text = f"gave no answer: {str(error).strip().splitlines()[0]}"
            advice = "is stream2llm installed there, and the node alive (ray status)?"
            return Finding(Level.PROBLEM, "node", text, advice, self._address)

    def _offset(self, clock: Clock) -> ClockOffset:
        return min(self._offsets(clock), key=lambda each: each.uncertainty_s)

    def _offsets(self, clock: Clock) -> Iterator[ClockOffset]:
        import ray

        for _ in range(_CLOCK_ROUNDS):
            began_s = clock.wall_s()
            there_s: float = ray.get(self._probe.wall_s.remote(), timeout=NODE_TIMEOUT_S)
            half_s = (clock.wall_s() - began_s) / 2
            yield ClockOffset(f"node {self._address}", there_s - began_s - half_s, half_s)


def _gathered(answers: list[tuple[Machine, ClockOffset] | Finding]) -> Nodes:
    good = [each for each in answers if not isinstance(each, Finding)]
    findings = tuple(each for each in answers if isinstance(each, Finding))
    return Nodes(tuple(m for m, _ in good), tuple(offset for _, offset in good), findings)
