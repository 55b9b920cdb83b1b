"""Checks whether a Ray can hold the cluster, before an actor is created. Logs, and acts no further."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import repeat

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.loopback import is_loopback
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import ROUTER_CPUS
from stream2llm.cluster.room import Demand, Node, Refusal, refusal_of_all, refusal_of_one

_log = logging.getLogger(__name__)


def check_ray(config: ClusterConfig, nodes: Sequence[Node]) -> None:
    """Raises InvalidRequestError for what these nodes can never hold, or where they cannot meet.

    With `ray.autoscales` more nodes may come: what does not fit is then only logged.
    """
    check_hosts(config, len(nodes))
    refusal = find_refusal(config, nodes)
    if refusal is None:
        return
    if not config.ray.autoscales:
        raise InvalidRequestError(refusal.text, reason="NO_ROOM", field=refusal.field)
    _log.warning("%s: waiting for an autoscaler to add nodes", refusal.text)


def check_hosts(config: ClusterConfig, num_nodes: int) -> None:
    """On several nodes, routers and workers listen where the other nodes reach them."""
    if num_nodes < 2:
        return
    hosts = {"router": config.router.host}
    hosts |= {role: part.host for role, part in config.worker_sections}
    local = [f"{part}.host" for part, host in hosts.items() if is_loopback(host)]
    if local:
        raise InvalidRequestError(
            f"this Ray has {num_nodes} nodes, which do not reach each other on loopback:"
            f" set {', '.join(local)} to auto",
            reason="LOOPBACK",
            field=local[0],
        )
    if is_loopback(config.controller.host):
        # Sessions do not need it, and its port has no authentication: the operator chooses.
        _log.warning(
            "controller.host is %s, and this Ray has %d nodes: stream2llm status, top, policy and"
            " Prometheus reach the controller from its own node alone; auto makes it listen on"
            " that node's address",
            config.controller.host,
            num_nodes,
        )


def find_refusal(config: ClusterConfig, nodes: Sequence[Node]) -> Refusal | None:
    """Returns why these nodes cannot hold all actors; None if they seem to."""
    demands = list(demands_of(config))
    each = (refusal_of_one(part, demand, nodes) for part, demand in dict(demands).items())
    return next((r for r in each if r is not None), None) or refusal_of_all(demands, nodes)


def demands_of(config: ClusterConfig) -> Iterator[tuple[str, Demand]]:
    """Each actor's section of the configuration, and what it wants of its node."""
    router = config.router
    yield "controller", Demand.of(0, 0, config.controller.placement)
    yield from repeat(("router", Demand.of(ROUTER_CPUS, 0, router.placement)), router.replicas)
    if (gateway := config.gateway) is not None:
        yield from repeat(
            ("gateway", Demand.of(ROUTER_CPUS, 0, gateway.placement)), gateway.replicas
        )
    for role, part in config.worker_sections:
        demand = Demand.of(part.num_cpus, part.num_gpus, part.placement)
        yield from repeat((role, demand), part.replicas)
