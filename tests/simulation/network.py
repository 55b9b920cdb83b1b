"""A network between processes: delays, partitions, connections that break.

Messages of one RPC in one direction keep their order; between RPCs there is none. What a
partition holds back arrives when it ends, unless the connection was given up by then, as
gRPC's pings do. A process that stands still answers no ping either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from tests.simulation.loop import VirtualLoop
from tests.simulation.process import Process

# As long as pings take between our parts (`grpc_options.py`); clients' take no longer here.
KEEPALIVE_S = 18.0
_TICK_S = 0.0005
# Between two messages of one pipe, so that they keep their order.
_NEXT_S = 1e-6


class Broken(Protocol):
    """An RPC whose connection breaks."""

    client: Process
    server: Process

    def break_off(self, details: str) -> None:
        """The connection is lost: both sides hear of it."""


class Network:
    """Carries messages, and knows which connections there are."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        # Servers by address.
        self.servers: dict[str, Any] = {}
        self.rpcs: dict[Broken, None] = {}
        # Longest delay of a message while nothing is wrong, in ticks.
        self.most_ticks = random.choice((1, 3, 20))
        # How many messages of a stream may be under way or unread.
        self.window = random.choice((1, 2, 8, 64))
        self._partitions: set[frozenset[str]] = set()
        # Pairs whose connection was given up, and cannot be made again.
        self._cut: set[frozenset[str]] = set()
        self._held: list[tuple[Pipe, Callable[..., None], tuple[Any, ...]]] = []
        self._num_ports = 0

    def new_port(self) -> int:
        self._num_ports += 1
        return self._num_ports

    def delay_s(self) -> float:
        """Seconds of one message; many arrive at one instant."""
        return _TICK_S * self.random.randrange(self.most_ticks + 1)

    def watch(self, process: Process) -> None:
        """Breaks its connections when it dies."""
        process.on_death.append(lambda: self._lost(process))

    def reaches(self, one: Process, other: Process) -> bool:
        """Whether a message gets from one to the other now."""
        return self._pair(one, other) not in self._partitions

    def is_cut(self, one: Process, other: Process) -> bool:
        """Whether no connection can be made between the two."""
        return self._pair(one, other) in self._cut

    def partition(self, one: str, other: str, duration_s: float) -> None:
        """Nothing passes between the two for so long."""
        pair = frozenset((one, other))
        self._partitions.add(pair)
        self.loop.call_later(KEEPALIVE_S, self._give_up, pair)
        self.loop.call_later(duration_s, self._heal, pair)

    def stop(self, process: Process, duration_s: float) -> None:
        """The process stands still for so long."""
        process.freeze()
        self.loop.call_later(KEEPALIVE_S, self._silent, process)
        self.loop.call_later(duration_s, self._goes_on, process)

    def reset(self, one: str, other: str) -> None:
        """Breaks the connections between the two."""
        self._break(frozenset((one, other)), "recvmsg:Connection reset by peer")

    def hold(self, pipe: Pipe, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Keeps a message until the partition ends."""
        self._held.append((pipe, deliver, args))

    @staticmethod
    def _pair(one: Process, other: Process) -> frozenset[str]:
        return frozenset((one.name, other.name))

    def _lost(self, process: Process) -> None:
        for rpc in list(self.rpcs):
            if process in (rpc.client, rpc.server):
                rpc.break_off("Socket closed")

    def _give_up(self, pair: frozenset[str]) -> None:
        if pair in self._partitions:
            self._cut.add(pair)
            self._break(pair, "keepalive watchdog timeout")

    def _silent(self, process: Process) -> None:
        if process.is_frozen:
            for rpc in list(self.rpcs):
                if process in (rpc.client, rpc.server):
                    rpc.break_off("keepalive watchdog timeout")

    def _goes_on(self, process: Process) -> None:
        process.thaw()

    def _break(self, pair: frozenset[str], details: str) -> None:
        for rpc in list(self.rpcs):
            if self._pair(rpc.client, rpc.server) == pair:
                rpc.break_off(details)

    def _heal(self, pair: frozenset[str]) -> None:
        self._partitions.discard(pair)
        self._cut.discard(pair)
        held, self._held = self._held, []
        for pipe, deliver, args in held:
            pipe.send(deliver, *args)


class Pipe:
    """One direction of one RPC: in order, and no more than a window at a time."""

    def __init__(self, network: Network, sender: Process, receiver: Process) -> None:
        self._network = network
        self._sender = sender
        self._receiver = receiver
        self._last_s = 0.0
        self._num_unread = 0
        self._changed = asyncio.Event()
        self.is_cut = False

    async def until_room(self, is_over: Callable[[], bool]) -> None:
        """Returns when a message can be sent, or the RPC is over."""
        while self._num_unread >= self._network.window and not is_over():
            self._changed.clear()
            await self._changed.wait()

    def wake(self) -> None:
        """The RPC is over."""
        self._changed.set()

    def note_read(self) -> None:
        """The receiver has taken a message."""
        self._num_unread -= 1
        self._changed.set()

    def send_message(self, deliver: Callable[..., None], data: bytes) -> None:
        """Sends what the receiver will read."""
        self._num_unread += 1
        self.send(deliver, data)

    def send(self, deliver: Callable[..., None], *args: Any) -> None:
        """Calls `deliver` at the receiver; never, if the connection breaks before."""
        now_s = self._network.loop.time()
        at_s = max(now_s + self._network.delay_s(), self._last_s + _NEXT_S)
        self._last_s = at_s
        self._receiver.call(self._arrive, deliver, args, delay_s=at_s - now_s)

    def _arrive(self, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.is_cut:
            return
        if self._network.reaches(self._sender, self._receiver):
            deliver(*args)
        else:
            self._network.hold(self, deliver, args)
