"""A session's hand-over ahead of its seal: offers from prefill become fetches at decode.

The decode worker is chosen when the session opens, and again when it is lost.
Nothing in here fails a session: what does not work out ahead is made good by
the hand-over after the first token.

An offer is this session's to answer for until decode has it: one that is stale,
or that no worker takes, is released, so that prefill gets its blocks back at
once. After that, decode tells prefill; and if it dies, the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from router.ahead_log import AheadLog, Offered, OfferVerdict
from router.context import Splice
from router.fetch_leg import FetchLeg
from router.live_session import LiveSession
from router.stability import Stability
from router.status import WORKER_LOST
from router.workers import Worker
from stream2llm.errors import Stream2LLMError
from stream2llm.handover import HandoverMode
from stream2llm.ids import unique_id
from stream2llm.prefix import Tokens, as_tokens
from stream2llm.v1 import worker_pb2 as pb

_logger = logging.getLogger(__name__)
# A session whose decode workers break again and again hands over at the seal.
_MOST_WORKERS = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Fresh:
    """An offer that was not stale when it came, and its tokens."""

    what: Offered
    tokens: Tokens
    offer: pb.HandoverOffer


class Ahead:
    """One session's; does nothing for one that hands over at the seal."""

    def __init__(self, live: LiveSession, mode: HandoverMode) -> None:
        self._live = live
        self._log = AheadLog()
        self._stability: Stability | None = None
        self._sequence: Tokens = as_tokens([])
        # One at most is open at a time, so the queue holds one or two.
        self._offers: asyncio.Queue[_Fresh] = asyncio.Queue()
        # The fetch at decode, and those of which a splice has changed tokens.
        self._at_decode: Offered | None = None
        self._in_vain: set[Offered] = set()
        self._leg: FetchLeg | None = None
        # Whether this session streams its hand-over.
        self.is_on = mode == "streamed"
        self._legs_left = _MOST_WORKERS
        if self.is_on:
            self._next_leg()

    # -- the context ---------------------------------------------------------------

    def began(self, num_prefix_tokens: int) -> None:
        """The template's prefix has so many tokens."""
        if self.is_on:
            self._stability = Stability(num_prefix_tokens)

    def appended(self, sequence: Tokens) -> int:
        """How much of the sequence is stable now that documents came at its end."""
        return self._stability.appended(len(sequence)) if self._stability else 0

    def updated(self, num_kept_tokens: int, num_sure_tokens: int) -> int:
        """How much of the sequence is stable now that a new list came."""
        if self._stability is None:
            return 0
        return self._stability.updated(num_kept_tokens, num_sure_tokens)

    def sealed(self, sequence: Tokens) -> int:
        """All of it."""
        return self._stability.sealed(len(sequence)) if self._stability else 0

    async def spliced(self, revision: int, splice: Splice, sequence: Tokens) -> None:
        """Prefill is about to hear of this splice."""
        if not self.is_on:
            return
        self._sequence = sequence
        fetching = self._log.fetching
        if not self._log.spliced(revision, splice.keep_tokens) or fetching is None:
            return
        self._log.ended(fetching)
        if fetching != self._at_decode:
            self._in_vain.add(fetching)
        elif self._leg is not None:
            await self._leg.abort()

    def seen(self, revision: int) -> None:
        """Prefill's progress includes that splice."""
        self._log.seen(revision)

    # -- offers ---------------------------------------------------------------------

    def offered(self, offer: pb.HandoverOffer) -> None:
        """Prefill has KV to fetch; to be told in the order of prefill's messages."""
        what = Offered(offer.revision, offer.num_tokens)
        if self._log.offered(what) is OfferVerdict.STALE:
            self._release(offer)
        else:
            # The tokens that it is the KV of, whatever the sequence becomes.
            tokens = self._sequence[: offer.num_tokens]
            self._offers.put_nowait(_Fresh(what, tokens, offer))

    async def run(self) -> None:
        """Serves offers until it is cancelled."""
        while True:
            fresh = await self._offers.get()
            if fresh.what in self._in_vain:
                self._in_vain.discard(fresh.what)
                self._release(fresh.offer)
                continue
            self._at_decode = fresh.what
            try:
                await self._fetch(fresh.offer, fresh.tokens)
            finally:
                self._at_decode = None
                self._log.ended(fresh.what)

    async def _fetch(self, offer: pb.HandoverOffer, tokens: Tokens) -> None:
        # Lost since the last fetch, or there was none to choose then.
        if self._leg is None or await self._leg.has_ended():
            self._next_leg()
        if self._leg is None:
            self._release(offer)
            return
        try:
            end = await self._sent(self._leg, tokens, offer)
        except Stream2LLMError as error:
            _logger.info("fetch_broke session_id=%s error=%s", self._live.session_id, error)
            if error.reason != WORKER_LOST:  # one that was lost may still be reading
                self._release(offer)
            self._next_leg()
        else:
            self._live.parts.metrics.fetch_ended(pb.FetchEnd.Name(end.end))

    async def _sent(
        self, leg: FetchLeg, tokens: Tokens, offer: pb.HandoverOffer
    ) -> pb.FetchAheadResponse:
        try:
            return await leg.fetch(tokens, offer.handover)
        except asyncio.CancelledError:
            if not leg.has_sent:  # nobody else will
                self._release(offer)
            raise

    def _release(self, offer: pb.HandoverOffer) -> None:
        request = pb.ReleaseHandoverRequest(
            session_id=self._live.session_id, handover=offer.handover
        )
        self._live.parts.workers.release_handover(request)

    def _next_leg(self) -> None:
        """Another decode worker, if there is one. It gets the offers that wait, too."""
        self._close_leg()
        worker = self._live.parts.workers.pick("decode") if self._legs_left else None
        if worker is not None:
            self._legs_left -= 1
            name = unique_id(self._live.session_id)
            self._leg = FetchLeg(self._live.parts.workers, worker, name)

    # -- the answer -------------------------------------------------------------------

    async def take_worker(self) -> tuple[Worker, str] | None:
        """The worker that has the session's KV, and the name it knows it by; None: no such one."""
        leg = self._leg
        if leg is None or await leg.has_ended():
            return None
        if not self._live.parts.workers.is_usable(leg.worker):
            return None
        leg.leave()
        return leg.worker, leg.fetch_session_id

    def close(self) -> None:
        """Gives up what is under way; may be called again."""
        self._close_leg()
        while not self._offers.empty():
            self._release(self._offers.get_nowait().offer)

    def _close_leg(self) -> None:
        if self._leg is not None:
            self._leg.close()
            self._leg = None
