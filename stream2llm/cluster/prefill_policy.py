"""One scheduling policy for all prefill workers, including recreated ones.

An operator's choice holds until the next one or the end of the controller; a starting
worker gets it before it is used. Independent of Ray, so tests run it against workers
in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prefill_worker.policy_loading import require_policy
from stream2llm.api.errors import Stream2LLMError
from stream2llm.cluster.supervision import Replica

# A little longer than a worker waits for its scheduler.
TELL_TIMEOUT_S = 40.0
ASK_TIMEOUT_S = 10.0


class FollowedPolicy(NamedTuple):
    """What a worker's scheduler follows."""

    policy: str
    # What the chosen policy raised, if that is why it is another one.
    failure: str = ""


class PolicyHosts(Protocol):
    """The workers by name. Both methods raise UnavailableError, or an error of the worker's."""

    async def set_policy(self, name: str, policy: str) -> None:
        """Sets the policy; returns when the worker's scheduler follows it."""

    async def policy_of(self, name: str) -> FollowedPolicy:
        """Returns the policy that the worker's scheduler follows."""


@dataclass(slots=True)
class PolicyChoice:
    """The policy that prefill workers are to follow; may change while some of them start."""

    name: str
    # Policies that the configuration names by import path; a caller can choose no others.
    import_paths: tuple[str, ...] = ()

    async def catch_up(self, begun_with: str, send: Callable[[str], Awaitable[None]]) -> None:
        """Brings a worker that has just started up to date, however often the choice changes."""
        sent = begun_with
        while sent != self.name:
            sent = self.name
            await send(sent)


@dataclass(frozen=True, slots=True)
class WorkerPolicy:
    """One prefill worker's policy."""

    name: str
    # See `supervision.Phase`.
    phase: str
    # Empty while it is not running or does not answer.
    policy: str = ""
    # Why it did not confirm or answer.
    error: str = ""
    # What the chosen policy raised, if the worker follows another one since.
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The choice, and each prefill worker's policy."""

    policy: str
    workers: tuple[WorkerPolicy, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """One line for each running worker that did not confirm or answer."""
        return tuple(f"{w.name}: {w.error}" for w in self.workers if w.error)


class PrefillPolicy:
    """Sets and reads the policy of all prefill workers."""

    def __init__(
        self, choice: PolicyChoice, hosts: PolicyHosts, replicas: Callable[[], Iterable[Replica]]
    ) -> None:
        self._choice = choice
        self._hosts = hosts
        # Returns the prefill workers that should exist, in their present state.
        self._replicas = replicas
        # Concurrent operators must not leave workers with different policies.
        self._switching = asyncio.Lock()
        # Called when another policy has been chosen, before any worker has it.
        self.on_chosen: Callable[[], None] = lambda: None

    @property
    def chosen(self) -> str:
        """The policy that workers follow, or will."""
        return self._choice.name

    async def show(self) -> PolicyState:
        """Asks each worker which policy it follows."""
        return await self._of_each(self._ask)

    async def switch(self, policy: str) -> PolicyState:
        """Switches all workers to a policy; raises InvalidRequestError for an unknown one.

        The result names those that did not confirm. The choice stays, so calling this
        again is sufficient.
        """
        name = require_policy(policy, self._choice.import_paths)
        async with self._switching:
            self._choice.name = name
            self.on_chosen()
            return await self._of_each(lambda replica: self._tell(replica, name))

    async def _of_each(self, act: Callable[[Replica], Awaitable[WorkerPolicy]]) -> PolicyState:
        workers = await asyncio.gather(
            *(act(r) if r.is_alive else _not_running(r) for r in self._replicas())
        )
        return PolicyState(self.chosen, tuple(workers))

    async def _tell(self, replica: Replica, policy: str) -> WorkerPolicy:
        return await self._outcome(replica, self._told(replica.name, policy), TELL_TIMEOUT_S)

    async def _told(self, name: str, policy: str) -> FollowedPolicy:
        await self._hosts.set_policy(name, policy)
        return FollowedPolicy(policy)

    async def _ask(self, replica: Replica) -> WorkerPolicy:
        return await self._outcome(replica, self._hosts.policy_of(replica.name), ASK_TIMEOUT_S)

    async def _outcome(
        self, replica: Replica, answer: Awaitable[FollowedPolicy], timeout_s: float
    ) -> WorkerPolicy:
        phase = replica.phase.value
        try:
            async with asyncio.timeout(timeout_s):
                policy, failure = await answer
                return WorkerPolicy(replica.name, phase, policy, failure=failure)
        except TimeoutError:
            return WorkerPolicy(replica.name, phase, error=f"no answer for {timeout_s:g} s")
        except Stream2LLMError as error:
            return WorkerPolicy(replica.name, phase, error=error.message)


async def _not_running(replica: Replica) -> WorkerPolicy:
    return WorkerPolicy(replica.name, replica.phase.value)
