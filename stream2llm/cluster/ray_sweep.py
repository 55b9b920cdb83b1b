"""Kills the marked processes of a cluster on every node of a Ray, also without a controller."""

from __future__ import annotations

from contextlib import suppress

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stream2llm.serving.system.processes import kill_owned

# For a node that Ray has lost, and does not know it yet.
NODE_TIMEOUT_S = 30.0


def sweep(prefix: str, grace_s: float = 0.0) -> None:
    """Kills processes whose mark begins so; those that end within the grace end by themselves.

    Blocks. Raises TimeoutError when one on this node does not end.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]
    calls = [_sweep_node(node, prefix, grace_s) for node in others]
    kill_owned(prefix, grace_s)
    for call in calls:
        with suppress(ray.exceptions.RayError):  # the node is gone with all its processes
            ray.get(call, timeout=grace_s + NODE_TIMEOUT_S)


def _sweep_node(node_id: str, prefix: str, grace_s: float) -> ray.ObjectRef:
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(kill_owned)
    return task.options(scheduling_strategy=place).remote(prefix, grace_s)
