"""The Ray shell of a prefill worker."""

from __future__ import annotations

import ray

from stream2llm.serving.actor.actor_shell import WorkerShell
from stream2llm.serving.actor.node_address import node_address
from stream2llm.serving.actor.sigterm import kept_sigterm
from stream2llm.serving.settings.launch import Launch


# Ray never restarts it: a new process has lost its state, ports and peers, so the
# controller creates a new actor. For the concurrency groups see actor_shell.
@ray.remote(
    max_restarts=0, max_task_retries=0, max_concurrency=64, concurrency_groups={"control": 2}
)
class PrefillActor(WorkerShell):
    """Hosts one prefill worker process."""

    def __init__(self, launch: Launch) -> None:
        node_id = ray.get_runtime_context().get_node_id()
        super().__init__(launch, node_address(), kept_sigterm(), node_id)

    async def set_policy(self, policy: str) -> None:
        """Sets the scheduler's policy; returns when the scheduler follows it."""
        await self._hosted.set_policy(policy)
