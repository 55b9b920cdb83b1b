"""Connects decode workers with prefill workers; finds out which one to replace if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.fleet_state import FleetState
from stream2llm.cluster.hosts import Hosts
from stream2llm.serving.actor.loss import Loss
from stream2llm.serving.settings.worker_spec import WorkerAddress

_log = logging.getLogger(__name__)

# For the status of a worker after a failed connection: a death is known at once.
_PROBE_TIMEOUT_S = 5.0

# The watcher's check: returns why a worker counts as lost, None if it answers.
Probe = Callable[[str, float], Awaitable[Loss | None]]


class Connector:
    """Carries out `Connect`."""

    def __init__(
        self,
        state: FleetState,
        hosts: Hosts,
        probe: Probe,
        connect_timeout_s: float,
        evidence_timeout_s: float,
    ) -> None:
        self._state = state
        self._hosts = hosts
        self._probe = probe
        self._connect_timeout_s = connect_timeout_s
        self._evidence_timeout_s = evidence_timeout_s

    async def connect(self, decode: str, prefill: str) -> None:
        """Makes two workers shake hands; if they cannot, one of them is replaced."""
        fleet = self._state.fleet
        pair = (fleet[decode].incarnation, fleet[prefill].incarnation)
        address = self._state.addresses[prefill]
        assert isinstance(address, WorkerAddress)
        try:
            await self._shake_hands(decode, address)
        except Exception as error:
            await self._failed(decode, prefill, pair, f"{type(error).__name__}: {error}")
            return
        if self._is_current(decode, prefill, pair):
            self._state.apply(sv.connected(self._state.fleet, decode, prefill))

    async def _shake_hands(self, decode: str, prefill: WorkerAddress) -> None:
        limit_s = self._connect_timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                await self._hosts.connect(decode, prefill)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(f"no answer came for {limit_s:g} s") from None

    async def _failed(self, decode: str, prefill: str, pair: tuple[int, int], error: str) -> None:
        state = self._state
        # The death of either side is the most probable reason, and may be known in a moment.
        for name in (each for each in (prefill, decode) if each in state.fleet):
            if state.fleet[name].is_alive and (loss := await self._probe(name, _PROBE_TIMEOUT_S)):
                state.died(name, state.fleet[name].incarnation, loss)
        if not self._is_current(decode, prefill, pair):
            return
        evidence = await self._gather_evidence(decode, prefill)
        if self._is_current(decode, prefill, pair):
            fleet, blamed = sv.connection_failed(state.fleet, decode, prefill, evidence, error)
            state.events.add(blamed, f"is replaced: {fleet[blamed].reason}")
            state.apply(fleet)

    async def _gather_evidence(self, decode: str, prefill: str) -> sv.Evidence:
        """Examines both workers; if that finds nothing, connects them with other ready ones."""
        faults = await asyncio.gather(self._examine(decode), self._examine(prefill))
        if any(faults):
            return sv.Evidence(*faults)
        connects = await asyncio.gather(
            self._connects(decode, self._another("prefill", prefill)),
            self._connects(self._another("decode", decode), prefill),
        )
        return sv.Evidence("", "", *connects)

    def _another(self, role: sv.Role, name: str) -> str | None:
        ready = (r for r in self._state.fleet.values() if r.phase is sv.Phase.ADMITTED)
        return next((r.name for r in ready if r.role == role and r.name != name), None)

    async def _examine(self, name: str) -> str:
        limit_s = self._evidence_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._hosts.examine(name)
        except TimeoutError:
            return f"it did not say for {limit_s:g} s whether it is well"
        except Exception as error:
            return f"it cannot say whether it is well: {type(error).__name__}: {error}"

    async def _connects(self, decode: str | None, prefill: str | None) -> bool | None:
        """Returns whether the two connect; None unless both are given."""
        address = self._state.addresses.get(prefill or "")
        if decode is None or not isinstance(address, WorkerAddress):
            return None
        try:
            async with asyncio.timeout(self._evidence_timeout_s):
                await self._hosts.connect(decode, address)
        except Exception as error:
            _log.warning("no_connection decode=%s prefill=%s error=%r", decode, prefill, error)
            return False
        return True

    def _is_current(self, decode: str, prefill: str, pair: tuple[int, int]) -> bool:
        state = self._state
        both = zip((decode, prefill), pair, strict=True)
        are_present = all(state.is_present(*each) for each in both)
        return are_present and state.fleet[decode].connecting == prefill
