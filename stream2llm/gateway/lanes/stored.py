"""Lanes of callers without a socket: each response names the next one's lane by its id.

A caller is known by what the request shows to the router: no other caller finds its
responses. A lane is forgotten when it was not used for some time, or when the caller has too
many; its session ends with it, and long before if it is idle, by the router's own limit.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from stream2llm.api.call_metadata import TTFT_SLO_NAMES, Metadata
from stream2llm.api.errors import OverloadedError
from stream2llm.gateway.lanes.forms import written_as_sse
from stream2llm.gateway.lanes.lane import Lane, LaneGroup
from stream2llm.gateway.lanes.state import Kept, LaneLimits, LaneName, not_found
from stream2llm.serving.system.clock import Clock

Caller = bytes
# What a request says beside who its caller is.
_OF_ONE_REQUEST = frozenset({*TTFT_SLO_NAMES, "traceparent", "tracestate"})


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of what callers without a socket make us remember."""

    # Limits of one caller.
    lanes: LaneLimits = field(default_factory=LaneLimits)
    max_callers: int = 1024
    # Seconds without a request after which a lane is forgotten; OpenAI's lasts as long.
    time_to_live_s: float = 1800.0


@dataclass(slots=True, eq=False)
class StoredLane:
    """A lane, and who uses it."""

    lane: Lane
    used_s: float
    # Held by the request under way.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


@dataclass(slots=True, eq=False)
class _Stored:
    """What one caller has."""

    group: LaneGroup
    lanes: dict[LaneName, StoredLane] = field(default_factory=dict)

    @property
    def used_s(self) -> float:
        """When it was used last."""
        return max((each.used_s for each in self.lanes.values()), default=0.0)


class LaneStore:
    """All callers without a socket. Call `close` at the end."""

    def __init__(self, limits: StoreLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._callers: dict[Caller, _Stored] = {}

    def of(self, metadata: Metadata) -> CallerStore:
        """What of it a caller's connections see."""
        return CallerStore(self, _name_of(metadata))

    def find(self, caller: Caller, response_id: str) -> Kept | None:
        """A response of a caller; None if there is none."""
        stored = self._callers.get(caller)
        return None if stored is None else stored.group.lanes.find(response_id)

    async def keep(self, caller: Caller, response: Kept, group: LaneGroup) -> None:
        """Keeps a response of a connection in a lane of its own."""
        await _close(self._forgotten())
        if caller not in self._callers:
            self._callers[caller] = _Stored(group.alike(self._limits.lanes))
        stored = self._callers[caller]
        name = self._new_lane(stored)
        stored.group.lanes = stored.group.lanes.with_stored(name, response)

    async def lane(
        self,
        metadata: Metadata,
        previous_id: str | None,
        make_group: Callable[[Metadata, LaneLimits], Awaitable[LaneGroup]],
    ) -> StoredLane:
        """The lane of a response, or a new one, in use until `release`.

        `make_group` asks the router whether it knows the caller. Raises InvalidRequestError
        for a response that this caller does not have, and OverloadedError.
        """
        await _close(self._forgotten())
        caller = _name_of(metadata)
        if caller not in self._callers and previous_id is not None:
            raise not_found(previous_id)
        if caller not in self._callers:
            group = await make_group(_shown(metadata), self._limits.lanes)
            self._callers.setdefault(caller, _Stored(group))
        stored = self._callers[caller]
        lane = stored.lanes[self._name(stored, previous_id)]
        lane.num_users += 1
        return lane

    def release(self, lane: StoredLane) -> None:
        """Its request is answered."""
        lane.num_users -= 1
        lane.used_s = self._clock.monotonic_s()

    async def close(self) -> None:
        """Ends all sessions."""
        stored = [*self._callers.values()]
        self._callers.clear()
        for each in stored:
            await _close(each.lanes.values())

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
        stored.lanes[name] = StoredLane(lane, self._clock.monotonic_s())
        return name

    def _forgotten(self) -> list[StoredLane]:
        """Forgets lanes such that there is room for a new one and for a new caller."""
        now_s = self._clock.monotonic_s()
        forgotten: list[StoredLane] = []
        for caller, stored in list(self._callers.items()):
            forgotten += self._forgotten_of(stored, now_s)
            if not stored.lanes:
                del self._callers[caller]
        if len(self._callers) >= self._limits.max_callers:
            oldest = min(self._callers, key=lambda caller: self._callers[caller].used_s)
            if any(each.num_users for each in self._callers[oldest].lanes.values()):
                raise OverloadedError("too many callers at present", reason="TOO_MANY_LANES")
            forgotten += self._callers.pop(oldest).lanes.values()
        return forgotten

    def _forgotten_of(self, stored: _Stored, now_s: float) -> Iterator[StoredLane]:
        free = [name for name, lane in stored.lanes.items() if not lane.num_users]
        free.sort(key=lambda name: stored.lanes[name].used_s)
        num_over = len(stored.lanes) - self._limits.lanes.max_lanes + 1
        for index, name in enumerate(free):
            age_s = now_s - stored.lanes[name].used_s
            if index < num_over or age_s >= self._limits.time_to_live_s:
                stored.group.lanes = stored.group.lanes.without(name)
                yield stored.lanes.pop(name)


class CallerStore:
    """The responses of one caller, for its connections."""

    def __init__(self, store: LaneStore, caller: Caller) -> None:
        self._store = store
        self._caller = caller

    def find(self, response_id: str) -> Kept | None:
        """As the store's."""
        return self._store.find(self._caller, response_id)

    async def keep(self, response: Kept, group: LaneGroup) -> None:
        """As the store's."""
        await self._store.keep(self._caller, response, group)


def _shown(metadata: Metadata) -> Metadata:
    """What says who the caller is."""
    return tuple(pair for pair in metadata if pair[0] not in _OF_ONE_REQUEST)


def _name_of(metadata: Metadata) -> Caller:
    return sha256(repr(_shown(metadata)).encode()).digest()


async def _close(lanes: Iterable[StoredLane]) -> None:
    for each in lanes:
        await each.lane.close()
