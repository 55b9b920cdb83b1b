"""KV that crosses to decode before the seal, in virtual time.

What is stable and what is offered when is decided by production (router/stability.py,
prefill_worker/offers.py), whether decode has room by the simulated worker. One
session follows one decode worker from its opening on. A fetch that an update made
stale ends when it would have, and leaves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefill_worker.offers import OfferLimits, OfferTable
from router.stability import Stability
from stream2llm.simulator.decode import DecodeWorker
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.work import Change

# No lease expires here: no worker dies.
_FOR_EVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Fetch:
    """KV on its way to decode."""

    name: str
    prefill: int
    decode: int
    offer_id: str


@dataclass(slots=True)
class _Session:
    prefill: int
    decode: int
    stability: Stability
    num_known: int


class KvPrefetch:
    """All sessions of a cluster; keeps no clock of its own."""

    def __init__(
        self, prefill: Sequence[PrefillWorker], decode: Sequence[DecodeWorker], min_tokens: int
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._tables = [
            OfferTable(
                OfferLimits(worker.block_size, min_tokens, worker.num_blocks), lease_s=_FOR_EVER_S
            )
            for worker in prefill
        ]
        self._sessions: dict[str, _Session] = {}
        # Sessions that may have something to offer, by prefill worker.
        self._due: list[dict[str, None]] = [{} for _ in prefill]
        self.num_refused = 0

    def opened(self, name: str, prefill: int, decode: int, change: Change) -> None:
        """Prefill knows of it, and that decode worker follows; what is there is the template's prefix."""
        stability = Stability(change.num_known)
        self._sessions[name] = _Session(prefill, decode, stability, change.num_known)
        self._spliced(name, 0, change.num_known)

    def changed(self, name: str, change: Change) -> None:
        """Prefill knows of a change after the first."""
        session = self._sessions[name]
        stability = session.stability
        if change.seals:
            stable = stability.sealed(change.num_known)
        elif change.is_update:
            stable = stability.updated(change.num_kept)
        else:
            stable = stability.appended(change.num_known)
        num_same = min(change.num_kept, session.num_known)
        session.num_known = change.num_known
        self._spliced(name, num_same, stable)

    def _spliced(self, name: str, num_same: int, num_stable: int) -> None:
        session = self._sessions[name]
        table = self._tables[session.prefill]
        table.spliced(name, num_same, num_stable)
        self._decode[session.decode].cut(name, num_same - num_same % table.limits.block_size)
        self.touch(name)

    def touch(self, name: str) -> None:
        """The session was computed for, or its fetch has ended."""
        if (session := self._sessions.get(name)) is not None:
            self._due[session.prefill][name] = None

    def begin(self, number: int, now_s: float) -> list[tuple[float, Fetch]]:
        """Between two steps of that prefill worker: the fetches that begin, and when each ends."""
        due, self._due[number] = self._due[number], {}
        begun = [self._begin(name, now_s) for name in due]
        return [each for each in begun if each is not None]

    def _begin(self, name: str, now_s: float) -> tuple[float, Fetch] | None:
        session = self._sessions.get(name)
        if session is None:
            return None
        number, table = session.prefill, self._tables[session.prefill]
        worker = self._prefill[number]
        due = table.due(
            name,
            worker.num_computed(name),
            has_work=worker.has_work(name),
            is_short=worker.is_short_of_blocks,
        )
        if due.waits_for_memory:
            self._due[number][name] = None
        if not due.num_tokens:
            return None
        offer = table.make(name, worker.pin(name, due.num_tokens), now_s)
        ends_s = self._decode[session.decode].prefetch_kv(now_s, name, due.num_tokens)
        fetch = Fetch(name, number, session.decode, offer.offer_id)
        if ends_s is None:
            self.num_refused += 1
            self._end_offer(fetch)
            return None
        return ends_s, fetch

    def ended(self, fetch: Fetch) -> None:
        """All of it has been read."""
        self._decode[fetch.decode].prefetched(fetch.name)
        self._end_offer(fetch)
        self.touch(fetch.name)

    def _end_offer(self, fetch: Fetch) -> None:
        offer = self._tables[fetch.prefill].end(fetch.offer_id)
        assert offer is not None
        self._prefill[fetch.prefill].unpin(offer.block_ids)

    def answered(self, name: str) -> int:
        """The session has its first token: the decode worker that goes on with it."""
        session = self._sessions.pop(name)
        self._tables[session.prefill].forget(name)
        self._decode[session.decode].leave(name)
        return session.decode
