"""Prefill workers in memory, for tests of the scheduling policy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster.prefill_policy import FollowedPolicy


@dataclass
class FakeHosts:
    """Workers that follow what is set, except the deaf ones."""

    policies: dict[str, str]
    deaf: set[str] = field(default_factory=set)
    # What the policies of some have raised.
    failures: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)

    async def set_policy(self, name: str, policy: str) -> None:
        self.told.append((name, policy))
        await asyncio.sleep(0)  # lets another switch in, if nothing keeps it out
        if name in self.deaf:
            raise UnavailableError("the scheduler did not confirm")
        self.policies[name] = policy

    async def policy_of(self, name: str) -> FollowedPolicy:
        if name in self.deaf:
            raise UnavailableError("its process has died")
        return FollowedPolicy(self.policies[name], self.failures.get(name, ""))
