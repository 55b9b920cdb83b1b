"""Starts replicas, and removes what is left of dead ones before their successors start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from stream2llm.cluster import supervision as sv
from stream2llm.cluster.fleet_state import FleetState, loop_now_s
from stream2llm.cluster.hosts import Hosts

_log = logging.getLogger(__name__)


class Replacer:
    """Carries out `Create` and `Clean`."""

    def __init__(
        self,
        state: FleetState,
        hosts: Hosts,
        max_start_failures: int,
        on_started: Callable[[str], None],
        on_cleaned: Callable[[str], None],
    ) -> None:
        """`on_started` is called with a replica that answers, `on_cleaned` once nothing is left."""
        self._state = state
        self._hosts = hosts
        self._max_start_failures = max_start_failures
        self._on_started = on_started
        self._on_cleaned = on_cleaned
        self._began_s: dict[str, float] = {}  # by replica: its last start, once it had room

    async def create(self, name: str) -> None:
        """Creates the replica's present incarnation."""
        incarnation = self._state.fleet[name].incarnation
        again = "starting" if incarnation == 1 else f"starting again ({incarnation})"
        self._state.events.add(name, again)
        await self.start(name)

    async def start(self, name: str) -> None:
        """Waits for a start, also one that an earlier controller has begun."""
        state = self._state
        self._began_s[name] = loop_now_s()
        incarnation = state.fleet[name].incarnation
        outcome = await self._hosts.create(name, incarnation, partial(self._waits, name))
        if outcome.address is None:
            state.events.add(name, f"failed to start: {outcome.error}")
            permanent = outcome.permanent
            state.apply(sv.failed(state.fleet, name, outcome.error, permanent=permanent))
            return
        state.addresses[name] = outcome.address
        state.events.add(name, f"started in {loop_now_s() - self._began_s[name]:.1f} s")
        state.apply(sv.started(state.fleet, name))
        self._on_started(name)

    def _waits(self, name: str, missing: str) -> None:
        if missing:
            self._began_s[name] = loop_now_s()
        fleet = sv.waits_for_room(self._state.fleet, name, missing)
        if fleet is not self._state.fleet:
            self._state.events.add(name, f"waits: {missing}" if missing else "has a place now")
            self._state.apply(fleet)

    async def clean(self, name: str) -> None:
        """Kills what is left of a dead replica; then it may be created again, or is given up."""
        state = self._state
        try:
            await self._hosts.clean(name)
        except Exception as error:
            reason = f"what is left of it does not end: {type(error).__name__}: {error}"
            _log.exception("replica_not_cleaned name=%s", name)
            state.events.add(name, reason)
            state.apply(sv.not_cleaned(state.fleet, name, loop_now_s(), reason))
            return
        state.forget(name)
        self._on_cleaned(name)
        fleet = sv.cleaned(state.fleet, name, loop_now_s(), self._max_start_failures)
        self._tell(fleet[name])
        state.apply(fleet)

    def _tell(self, cleaned: sv.Replica) -> None:
        if cleaned.phase is sv.Phase.GIVEN_UP:
            _log.error("replica_given_up name=%s reason=%s", cleaned.name, cleaned.reason)
            pause_s = cleaned.not_before_s - loop_now_s()
            again = f"is given up: {cleaned.reason} (it is tried again in {pause_s:.0f} s)"
            self._state.events.add(cleaned.name, again)
        elif cleaned.phase is sv.Phase.STOPPED:
            self._state.events.add(cleaned.name, "is stopped, as requested")
