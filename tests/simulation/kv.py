"""KV memory of the model workers: which tokens a block range stands for, who holds it, how long.

KV is modelled by the tokens that it was computed from, so what decode reads says which
answer it would give. A hand-over is kept under a lease until it was read or released.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stream2llm.api.errors import UnavailableError
from stream2llm.api.v1 import worker_pb2 as pb
from tests.simulation.network import Network
from tests.simulation.process import Process

BLOCK_TOKENS = 4
# As vLLM's `kv_lease_duration`, at the least.
LEASE_S = 6.0
# A read of an engine that gives no answer fails after so long.
_READ_LIMIT_S = 5.0


def num_blocks(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def kv_lost(why: str) -> UnavailableError:
    """The error of a hand-over that cannot be read."""
    return UnavailableError(why, reason="KV_LOST")


@dataclass
class Kept:
    """Blocks that an engine keeps for a reader."""

    session_id: str
    tokens: tuple[int, ...]
    # Frees the blocks where they are counted.
    on_end: Callable[[], None] | None = None
    # Until when, by the loop's clock.
    until_s: float = 0.0


@dataclass
class KvMemory:
    """What one engine holds."""

    engine_id: str
    process: Process
    # Tokens by session.
    sessions: dict[object, int] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    # The engine gives no sign of life.
    is_hung: bool = False
    is_dead: bool = False
    num_kept: int = 0
    # The sessions of hand-overs that nothing has read or released in time.
    expired: list[str] = field(default_factory=list)

    @property
    def num_blocks_held(self) -> int:
        tokens = [*self.sessions.values(), *(len(each.tokens) for each in self.kept.values())]
        return sum(map(num_blocks, tokens))

    def keep(
        self, session_id: str, tokens: list[int], on_end: Callable[[], None] | None = None
    ) -> pb.Handover:
        """Keeps the KV of these tokens for a reader; returns the hand-over."""
        self.num_kept += 1
        name = f"{self.engine_id}#{self.num_kept}"
        until_s = self.process.loop.time() + LEASE_S
        self.kept[name] = Kept(session_id, tuple(tokens), on_end, until_s)
        self.process.call(self._expire, name, delay_s=LEASE_S)
        where = json.dumps({"engine": self.engine_id, "name": name})
        return pb.Handover(kv_transfer_params_json=where, num_blocks=num_blocks(len(tokens)))

    def end(self, name: str) -> None:
        """It was read, or will not be."""
        kept = self.kept.pop(name)
        if kept.on_end is not None:
            kept.on_end()

    def _expire(self, name: str) -> None:
        kept = self.kept.get(name)
        if kept is None:
            return
        left_s = kept.until_s - self.process.loop.time()
        if left_s > 0:  # its reader has sent heartbeats
            self.process.call(self._expire, name, delay_s=left_s)
            return
        self.expired.append(kept.session_id)
        self.end(name)


class Fabric:
    """Reads and notifications between engines, beside gRPC."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._engines: dict[str, KvMemory] = {}
        self._longest_read_s = network.random.choice((0.02, 0.02, 0.3, 2.0))
        # Set by the faults: the next reads that fail.
        self.num_bad_reads = 0

    def add(self, memory: KvMemory) -> None:
        self._engines[memory.engine_id] = memory

    async def read(self, reader: KvMemory, handover: pb.Handover) -> tuple[int, ...]:
        """Returns the tokens whose KV was read, and frees it; raises UnavailableError (KV_LOST)."""
        where = json.loads(handover.kv_transfer_params_json)
        if self._find(reader, where) is None:
            await asyncio.sleep(_READ_LIMIT_S * self._network.random.random())
            raise kv_lost("the engine does not answer, or keeps it no more")
        await asyncio.sleep(self._longest_read_s * self._network.random.random())
        kept = self._find(reader, where)
        if kept is None:
            raise kv_lost("the read broke, or its lease has ended")
        if self.num_bad_reads:
            self.num_bad_reads -= 1
            self.release(reader, handover)
            raise kv_lost("the digest differs")
        self.release(reader, handover)
        return kept.tokens

    def release(self, reader: KvMemory, handover: pb.Handover) -> None:
        """Tells the engine that it was read, or will not be; lost where that does not arrive."""
        where = json.loads(handover.kv_transfer_params_json)
        if self._find(reader, where) is not None:
            self._engines[where["engine"]].end(where["name"])

    def heartbeat(self, reader: KvMemory, handover: pb.Handover) -> None:
        """The reader will come: the lease begins anew; lost where that does not arrive."""
        kept = self._find(reader, json.loads(handover.kv_transfer_params_json))
        if kept is not None:
            kept.until_s = self._network.loop.time() + LEASE_S

    def _find(self, reader: KvMemory, where: Any) -> Kept | None:
        engine = self._engines[where["engine"]]
        stands_still = engine.is_dead or engine.is_hung or engine.process.is_frozen
        if stands_still or not (engine.process.is_alive and reader.process.is_alive):
            return None
        if not self._network.reaches(reader.process, engine.process):
            return None
        return engine.kept.get(where["name"])
