"""The Ray shell of a gateway."""

from __future__ import annotations

import ray

from stream2llm.serving.actor.actor_shell import GatewayShell
from stream2llm.serving.actor.node_address import node_address
from stream2llm.serving.actor.sigterm import kept_sigterm
from stream2llm.serving.settings.launch import Launch


# As of a router: Ray never restarts it, the controller creates a new actor.
@ray.remote(
    max_restarts=0, max_task_retries=0, max_concurrency=64, concurrency_groups={"control": 2}
)
class GatewayActor(GatewayShell):
    """Hosts one gateway process."""

    def __init__(self, launch: Launch) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        super().__init__(launch, node_address(), kept_sigterm(), node_id)
