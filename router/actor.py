"""The Ray shell of a router."""

from __future__ import annotations

import ray

from stream2llm.serving.actor.actor_shell import RouterShell
from stream2llm.serving.actor.node_address import node_address
from stream2llm.serving.actor.sigterm import kept_sigterm
from stream2llm.serving.settings.launch import Launch


# Ray never restarts it: a new process has lost its state, ports and peers, so the
# controller creates a new actor. For the concurrency groups see actor_shell.
@ray.remote(
    max_restarts=0, max_task_retries=0, max_concurrency=64, concurrency_groups={"control": 2}
)
class RouterActor(RouterShell):
    """Hosts one router process."""

    def __init__(self, launch: Launch) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        super().__init__(launch, node_address(), kept_sigterm(), node_id)
