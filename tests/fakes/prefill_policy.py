"""Prefill workers in memory, for tests of the scheduling policy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stream2llm.api.errors import UnavailableError


@dataclass
class FakeHosts:
    """Workers that do as they are told, but for the deaf."""

    policies: dict[str, str]
    deaf: set[str] = field(default_factory=set)
    told: list[tuple[str, str]] = field(default_factory=list)

    async def set_policy(self, name: str, policy: str) -> None:
        self.told.append((name, policy))
        await asyncio.sleep(0)  # lets another switch in, if nothing keeps it out
        if name in self.deaf:
            raise UnavailableError("the scheduler did not confirm")
        self.policies[name] = policy

    async def policy_of(self, name: str) -> str:
        if name in self.deaf:
            raise UnavailableError("its process has died")
        return self.policies[name]
