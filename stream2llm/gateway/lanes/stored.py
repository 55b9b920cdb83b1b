"""Lanes of callers without a socket: each response names the next one's lane by its id.

Responses belong to a tenant: whatever credentials of it find them, and no other tenant's do.
A lane is forgotten when it was not used for some time, when the tenant has too many, or to make
room; its session ends with it, and long before if it is idle, by the router's own limit.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from stream2llm.api.errors import OverloadedError
from stream2llm.gateway.lanes.forms import written_as_sse
from stream2llm.gateway.lanes.lane import Lane, LaneGroup
from stream2llm.gateway.lanes.memory import Memory
from stream2llm.gateway.lanes.state import Kept, LaneLimits, LaneName, Line, not_found
from stream2llm.serving.system.clock import Clock

MakeGroup = Callable[[LaneLimits, Memory], Awaitable[LaneGroup]]


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of what callers without a socket make us remember."""

    # Limits of one tenant.
    lanes: LaneLimits = field(default_factory=LaneLimits)
    max_tenants: int = 1024
    # Seconds without a request after which a lane is forgotten; OpenAI's lasts as long.
    time_to_live_s: float = 1800.0


@dataclass(slots=True, eq=False)
class StoredLane:
    """A lane, and who uses it."""

    name: LaneName
    lane: Lane
    used_s: float
    # Held by the request under way.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


@dataclass(slots=True, eq=False)
class _Stored:
    """What one tenant has."""

    group: LaneGroup
    lanes: dict[LaneName, StoredLane] = field(default_factory=dict)

    @property
    def used_s(self) -> float:
        """When it was used last."""
        return max((each.used_s for each in self.lanes.values()), default=0.0)

    @property
    def unused(self) -> list[StoredLane]:
        """Lanes without a request under way: those without a response, as all of their requests
        were refused, and then those that were used first."""
        free = (lane for lane in self.lanes.values() if not lane.num_users)
        lines = self.group.lanes.lines
        return sorted(free, key=lambda lane: (lane.name in lines, lane.used_s))

    def used(self, name: LaneName) -> StoredLane:
        """A lane, which is not forgotten from now on."""
        lane = self.lanes[name]
        lane.num_users += 1
        return lane

    def forget(self, lane: StoredLane) -> StoredLane:
        """Its responses cannot be continued any more."""
        self.group.lanes = self.group.lanes.without(lane.name)
        return self.lanes.pop(lane.name)

    async def give_way(self, num_chars: int) -> None:
        """Frees characters by forgetting lanes."""
        enough = self.group.memory.num_chars - num_chars
        forgotten = []
        for lane in self.unused:
            if self.group.memory.num_chars <= enough:
                break
            forgotten.append(self.forget(lane))
        await _close(forgotten)


class LaneStore:
    """All callers without a socket. Call `close` at the end."""

    def __init__(self, limits: StoreLimits, clock: Clock, memory: Memory) -> None:
        """`memory` is that of the whole gateway; the store gives way in it."""
        self._limits = limits
        self._clock = clock
        self._memory = memory
        memory.give_way = self._give_way
        self._tenants: dict[str, _Stored] = {}

    def of(self, tenant: str) -> TenantStore:
        """What of it a tenant's connections see."""
        return TenantStore(self, tenant)

    def find(self, tenant: str, response_id: str) -> Kept | None:
        """A response of a tenant; None if there is none."""
        stored = self._tenants.get(tenant)
        return None if stored is None else stored.group.lanes.find(response_id)

    async def keep(self, tenant: str, response: Kept, group: LaneGroup) -> None:
        """Keeps a response of a connection in a lane of its own; raises OverloadedError."""
        await _close(self._forgotten())
        if tenant not in self._tenants:
            self._add(tenant, group.alike(self._limits.lanes, self._tenant_memory()))
        stored = self._tenants[tenant]
        lane = stored.used(self._new_lane(stored))
        try:
            await stored.group.memory.ensure(Line((response.alone,)).size_chars)
            stored.group.lanes = stored.group.lanes.with_stored(lane.name, response)
        finally:
            self.release(lane)

    async def lane(self, tenant: str, previous_id: str | None, make_group: MakeGroup) -> StoredLane:
        """The lane of a response, or a new one, in use until `release`.

        Raises InvalidRequestError for a response that this tenant does not have, and
        OverloadedError.
        """
        await _close(self._forgotten())
        if tenant not in self._tenants:
            if previous_id is not None:
                raise not_found(previous_id)
            group = await make_group(self._limits.lanes, self._tenant_memory())
            if tenant not in self._tenants:  # else another request of it was faster
                self._add(tenant, group)
        stored = self._tenants[tenant]
        return stored.used(self._name(stored, previous_id))

    def release(self, lane: StoredLane) -> None:
        """Its request is answered."""
        lane.num_users -= 1
        lane.used_s = self._clock.monotonic_s()

    async def close(self) -> None:
        """Ends all sessions."""
        for tenant in [*self._tenants]:
            await _close(self._without(tenant))

    def _add(self, tenant: str, group: LaneGroup) -> None:
        self._tenants[tenant] = stored = _Stored(group)
        group.memory.give_way = stored.give_way

    def _tenant_memory(self) -> Memory:
        return Memory(self._limits.lanes.max_chars, "the tenant", part_of=self._memory)

    def _name(self, stored: _Stored, previous_id: str | None) -> LaneName:
        if previous_id is not None:
            name = stored.group.lanes.lane_of(previous_id)
            if name is None:
                raise not_found(previous_id)
            return name
        return self._new_lane(stored)

    def _new_lane(self, stored: _Stored) -> LaneName:
        name = uuid.uuid4().hex
        lane = Lane(name, stored.group, written_as_sse, None)
        stored.lanes[name] = StoredLane(name, lane, self._clock.monotonic_s())
        return name

    async def _give_way(self, num_chars: int) -> None:
        """Frees characters for any caller: those of the tenants that have most."""
        enough = self._memory.num_chars - num_chars
        by_size = sorted(self._tenants.values(), key=lambda each: -each.group.memory.num_chars)
        for stored in by_size:
            over = self._memory.num_chars - enough
            if over <= 0:
                break
            await stored.give_way(over)

    def _forgotten(self) -> list[StoredLane]:
        """Forgets lanes such that there is room for a new one and for a new tenant."""
        now_s = self._clock.monotonic_s()
        forgotten: list[StoredLane] = []
        for tenant, stored in list(self._tenants.items()):
            forgotten += self._forgotten_of(stored, now_s)
            if not stored.lanes:
                self._without(tenant)
        if len(self._tenants) >= self._limits.max_tenants:
            oldest = min(self._tenants, key=lambda tenant: self._tenants[tenant].used_s)
            if any(each.num_users for each in self._tenants[oldest].lanes.values()):
                raise OverloadedError("too many tenants at present", reason="TOO_MANY_LANES")
            forgotten += self._without(oldest)
        return forgotten

    def _forgotten_of(self, stored: _Stored, now_s: float) -> Iterator[StoredLane]:
        num_over = len(stored.lanes) - self._limits.lanes.max_lanes + 1
        for index, lane in enumerate(stored.unused):
            if index < num_over or now_s - lane.used_s >= self._limits.time_to_live_s:
                yield stored.forget(lane)

    def _without(self, tenant: str) -> list[StoredLane]:
        """Forgets a tenant; its lanes are still to be closed."""
        stored = self._tenants.pop(tenant)
        stored.group.forget()
        return [*stored.lanes.values()]


class TenantStore:
    """The responses of one tenant, for its connections."""

    def __init__(self, store: LaneStore, tenant: str) -> None:
        self._store = store
        self._tenant = tenant

    def find(self, response_id: str) -> Kept | None:
        """As the store's."""
        return self._store.find(self._tenant, response_id)

    async def keep(self, response: Kept, group: LaneGroup) -> None:
        """As the store's."""
        await self._store.keep(self._tenant, response, group)


async def _close(lanes: Iterable[StoredLane]) -> None:
    for each in lanes:
        await each.lane.close()
