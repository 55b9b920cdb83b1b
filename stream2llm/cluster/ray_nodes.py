"""Reads a Ray's nodes and its queue of actors that have no place yet.

Ray's own autoscaler reads the same state, which the GCS keeps with or without one. An
actor leaves the queue when a node has set its resources aside, before its process runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray

# A compiled module whose stub does not list it.
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceState,
    NodeState,
    NodeStatus,
    ResourceRequest,
)
from ray.core.generated.common_pb2 import LabelSelectorOperator

from stream2llm.cluster.room import Demand, LabelRule, Node


@dataclass(frozen=True, slots=True)
class RayState:
    """What a Ray has and what it cannot place, some second ago."""

    nodes: tuple[Node, ...]
    queued: tuple[Demand, ...]

    def queues(self, demand: Demand) -> bool:
        """Whether an actor with this demand waits for a place."""
        return any(each.is_same(demand) for each in self.queued)


def ray_state() -> RayState:
    """Asks the GCS of the Ray that this process uses. Blocks; raises Ray's errors."""
    state = _state()
    nodes = [_node(each) for each in state.node_states if each.status != NodeStatus.DEAD]
    queued = [_demand(each.request) for each in state.pending_resource_requests]
    return RayState(tuple(nodes), tuple(queued))


def draining_nodes() -> frozenset[str]:
    """Returns the ids of nodes that are about to end: `ray start --block` there got SIGTERM, or an
    autoscaler takes them away. Blocks; raises Ray's errors."""
    drains = NodeStatus.DRAINING
    return frozenset(e.node_id.hex() for e in _state().node_states if e.status == drains)


def _state() -> ClusterResourceState:
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    state: ClusterResourceState = get_cluster_resource_state(client)
    return state


def _node(state: NodeState) -> Node:
    return Node(
        state.node_ip_address,
        dict(state.labels),
        dict(state.total_resources),
        dict(state.available_resources),
    )


def _demand(request: ResourceRequest) -> Demand:
    rules = [
        LabelRule(
            each.label_key,
            frozenset(each.label_values),
            each.operator == LabelSelectorOperator.LABEL_OPERATOR_NOT_IN,
        )
        for selector in request.label_selectors
        for each in selector.label_constraints
    ]
    return Demand(dict(request.resources_bundle), frozenset(rules))
