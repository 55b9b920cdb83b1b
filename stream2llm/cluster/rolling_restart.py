"""Carries out the decisions of `rollout`: one rolling restart at a time, beside supervision.

Its state is the controller's, so that who has asked for it may leave, and a controller that
is started again goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Protocol

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster import rollout as ro
from stream2llm.cluster.supervisor import Supervisor

_log = logging.getLogger(__name__)


class Rooms(Protocol):
    """Where there is room for more actors."""

    async def missing_room(self, name: str) -> str:
        """Returns what every node lacks for one more worker like this; "" where one has room."""


class RollingRestart:
    """Replaces routers and workers one after the other while `run` runs."""

    def __init__(
        self,
        supervisor: Supervisor,
        rooms: Rooms,
        on_change: Callable[[], None] = lambda: None,
        rollout: ro.Rollout | None = None,
    ) -> None:
        """`rollout` is one to go on with."""
        self.rollout = rollout
        self._supervisor = supervisor
        self._rooms = rooms
        self._on_change = on_change
        # Set when an operator begins or stops one.
        self._asked = asyncio.Event()

    # -- for operators -----------------------------------------------------

    def begin(self, names: Collection[str], drain_s: float | None, limit_s: float) -> list[str]:
        """Begins one of these replicas, all for none; returns them in order.

        Raises InvalidRequestError for an unknown name, and while one is under way.
        """
        fleet = self._supervisor.fleet
        if unknown := set(names) - fleet.keys():
            raise InvalidRequestError(
                f"no router or worker is called {min(unknown)!r}; there are {', '.join(fleet)}",
                reason="UNKNOWN_WORKER",
                field="names",
            )
        if self.rollout is not None and self.rollout.state is ro.State.RUNNING:
            raise InvalidRequestError(
                f"a rolling restart is under way, it is {self.rollout.turn}'s turn: wait for its"
                " end, or stop it (stream2llm rollout stop)",
                reason="ROLLOUT_UNDER_WAY",
            )
        self._set(ro.begun(fleet, names, drain_s, limit_s, self._now_s()))
        assert self.rollout is not None
        _log.info("rollout_begun replicas=%s", ",".join(self.rollout.before))
        self._asked.set()
        return list(self.rollout.before)

    def stop(self) -> list[str]:
        """Stops it: the present replica is still replaced. Returns those that are left out."""
        if self.rollout is None or self.rollout.state is not ro.State.RUNNING:
            return []
        self._end(ro.End(ro.State.STOPPED))
        self._asked.set()
        return ro.left(self.rollout, self._supervisor.fleet)

    def describe(self) -> dict[str, Any] | None:
        """Returns the last one as plain data, None without one."""
        rollout, fleet = self.rollout, self._supervisor.fleet
        if rollout is None:
            return None
        not_yet = ro.left(rollout, fleet)
        turn = fleet.get(rollout.turn)
        return {
            "state": rollout.state.value,
            "replaced": [name for name in rollout.before if name not in not_yet],
            "left": not_yet,
            "now": ro.shown(turn) if turn is not None else "",
            "no_room": {name: why for name, why in (rollout.no_room or {}).items() if why},
            "reason": rollout.reason,
        }

    # -- the loop ----------------------------------------------------------

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            seen = self._supervisor.num_events
            self._asked.clear()
            try:
                while self.rollout is not None and await self._carry_out(self._next()):
                    pass
            except Exception as error:  # a bug must not leave the operator waiting
                _log.exception("rollout_broke")
                self._end(ro.End(ro.State.FAILED, f"{type(error).__name__}: {error}"))
            await self._until_changed(seen)

    def _next(self) -> ro.Step:
        assert self.rollout is not None
        fleet, now_s = self._supervisor.fleet, self._now_s()
        turned = ro.turned(self.rollout, fleet, now_s)
        if turned is not self.rollout:
            self._set(turned)
        return ro.next_step(turned, fleet, is_ready=self._supervisor.is_ready, now_s=now_s)

    async def _carry_out(self, step: ro.Step) -> bool:
        """Returns whether there may be another step at once."""
        assert self.rollout is not None
        if not isinstance(step, ro.Wait):
            _log.info("rollout_step step=%s", step)
        match step:
            case ro.Wait():
                return False
            case ro.FindRoom(name):
                missing = await self._rooms.missing_room(name)
                found = {**(self.rollout.no_room or {}), name: missing}
                self._set(replace(self.rollout, no_room=found))
            case ro.Add(name, role):
                self._supervisor.add(name, role)
            case ro.Drain(name, stays_away):
                self._supervisor.drain(name, self.rollout.drain_s, stays_away=stays_away)
            case ro.Forget(name):
                self._supervisor.forget(name)
            case ro.End():
                self._end(step)
        return True

    def _end(self, end: ro.End) -> None:
        assert self.rollout is not None
        self._set(replace(self.rollout, state=end.state, reason=end.reason))
        level = logging.ERROR if end.state is ro.State.FAILED else logging.INFO
        _log.log(level, "rollout_ended state=%s reason=%s", end.state, end.reason or "-")

    async def _until_changed(self, seen: int) -> None:
        """Returns when the fleet has changed, an operator has asked, or the turn takes too long."""
        due_s = ro.due_s(self.rollout)
        wait_s = None if due_s is None else max(due_s - self._now_s(), 0.0)
        waits = [
            asyncio.ensure_future(self._supervisor.wait_change(seen)),
            asyncio.ensure_future(self._asked.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def _set(self, rollout: ro.Rollout) -> None:
        self.rollout = rollout
        self._on_change()

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
