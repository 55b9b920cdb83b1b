"""KV prefetch of one session: passes offers from prefill to a decode worker before the seal.

The decode worker is chosen at the first offer, and again when it is lost: a session that
prefill offers nothing of costs no RPC. One with a structured output has a worker at once,
which compiles it. No failure in here fails the session: the hand-over after the first token
transfers whatever has not been prefetched.

The session is responsible for an offer until decode has it: an offer that is stale, or
that no worker takes, is released, so that prefill gets its blocks back at once. After
that, decode notifies prefill; and if decode dies, the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from router.kv_prefetch_log import Fetch, KvPrefetchLog, Offered, OfferVerdict, Spliced
from router.live_session import LiveSession
from router.prefetch_call import PrefetchCall, Prefetched
from router.splice import Splice
from router.stability import Stability
from router.status import WORKER_LOST, NeverArrivedError
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.handover import HandoverMode
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.sessions.prefix import Tokens
from stream2llm.serving.system.light_event import LightEvent

_logger = logging.getLogger(__name__)
# After this many lost decode workers a session hands over at the seal.
_MOST_WORKERS = 3


def _nothing() -> None:
    pass


class KvPrefetch:
    """The prefetch of one session; does nothing for one that hands over at the seal."""

    def __init__(self, live: LiveSession, mode: HandoverMode) -> None:
        self._live = live
        self._log = KvPrefetchLog[pb.Handover]()
        self._stability: Stability | None = None
        # Set when the log may have a fetch to send.
        self._has_news = LightEvent()
        # Begins `run`, unless that runs.
        self._begin: Callable[[], object] = _nothing
        self._worker_call: PrefetchCall | None = None
        # Whether this session streams its hand-over.
        self.is_on = mode == "streamed"
        self._calls_left = _MOST_WORKERS
        if live.sampling.structured_output is not None:
            self._next_call()

    # -- the context ---------------------------------------------------------------

    def began(self, num_prefix_tokens: int) -> None:
        """The template's prefix has `num_prefix_tokens` tokens."""
        if self.is_on:
            self._stability = Stability(num_prefix_tokens)

    def appended(self, sequence: Tokens) -> int:
        """Documents were appended; returns how many tokens of the sequence are stable."""
        return self._stability.appended(len(sequence)) if self._stability else 0

    def updated(self, num_kept_tokens: int, num_sure_tokens: int) -> int:
        """A new list was sent; returns how many tokens of the sequence are stable."""
        if self._stability is None:
            return 0
        return self._stability.updated(num_kept_tokens, num_sure_tokens)

    def sealed(self, sequence: Tokens) -> int:
        """The sequence is final; returns its length, since all of it is stable."""
        return self._stability.sealed(len(sequence)) if self._stability else 0

    def spliced(self, revision: int, splice: Splice) -> None:
        """Called before prefill receives this splice; never blocks."""
        if self.is_on:
            self._drop(self._log.spliced(revision, splice.keep_tokens, splice.sequence))

    def prefill_lost(self) -> None:
        """The offers name KV of a worker that does not hold the session any more.

        Released all the same: it may be alive, and only drain.
        """
        self._drop(self._log.lost())

    def _drop(self, spliced: Spliced[pb.Handover]) -> None:
        for handover in spliced.released:
            self._release(handover)
        if spliced.aborts and self._worker_call is not None:
            self._worker_call.abort()

    def seen(self, revision: int) -> None:
        """Prefill's progress includes that splice."""
        self._log.seen(revision)

    # -- offers ---------------------------------------------------------------------

    def offered(self, offer: pb.HandoverOffer) -> None:
        """Takes an offer from prefill; call it in the order of prefill's messages."""
        what = Offered(offer.revision, offer.num_tokens)
        if self._log.offered(what, offer.handover) is OfferVerdict.STALE:
            self._release(offer.handover)
        else:
            self._has_news.set()
            self._begin()

    def begin_by(self, begin: Callable[[], object]) -> None:
        """`begin` runs `run`, unless that runs; called when there is something to do."""
        self._begin = begin
        if self._worker_call is not None:
            begin()

    async def run(self) -> None:
        """Serves offers until it is cancelled."""
        if self._worker_call is not None and self._live.sampling.structured_output is not None:
            await self._worker_call.open()  # it compiles while the context streams in
        while True:
            fetch = self._log.next()
            if fetch is None:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            try:
                await self._fetch(fetch)
            finally:
                self._log.ended(fetch)

    async def _fetch(self, fetch: Fetch[pb.Handover]) -> None:
        """Fetches at the present worker, or at the next one if that cannot be reached."""
        worker_call = self._living_call()
        while worker_call is not None and not self._log.is_in_vain(fetch):
            try:
                end = await self._sent(worker_call, fetch)
            except NeverArrivedError as error:
                self._log_broken(error)
                self._next_call()
                worker_call = self._worker_call
            except Stream2LLMError as error:
                self._log_broken(error)
                if error.reason != WORKER_LOST:  # a lost one may still be reading
                    self._release(fetch.handover)
                self._next_call()
                return
            else:
                self._live.parts.metrics.fetch_ended(pb.FetchEnd.Name(end.end))
                return
        self._release(fetch.handover)

    def _living_call(self) -> PrefetchCall | None:
        """Returns the worker call; a new one if the last was lost, None without a worker."""
        if self._worker_call is None or self._worker_call.has_ended:
            self._next_call()
        elif self._worker_call.worker.drain_by_s is not None:  # it refuses every fetch
            self._next_call(costs=0)
        return self._worker_call

    async def _sent(
        self, worker_call: PrefetchCall, fetch: Fetch[pb.Handover]
    ) -> pb.PrefetchKvResponse:
        try:
            return await worker_call.fetch(fetch.tokens, fetch.handover)
        except asyncio.CancelledError:
            if not worker_call.has_sent:  # then no worker will release it
                self._release(fetch.handover)
            raise

    def _log_broken(self, error: Stream2LLMError) -> None:
        _logger.info("fetch_broke session_id=%s error=%s", self._live.session_id, error)

    def _release(self, handover: pb.Handover) -> None:
        request = pb.ReleaseHandoverRequest(session_id=self._live.session_id, handover=handover)
        self._live.parts.workers.release_handover(request)

    def _next_call(self, costs: int = 1) -> None:
        """Opens a call to another decode worker, if there is one; waiting offers go to it.

        It costs one of `_MOST_WORKERS`, unless the one before only drains.
        """
        self._close_call()
        worker = self._live.parts.workers.pick("decode") if self._calls_left else None
        if worker is not None:
            self._calls_left -= costs
            name = unique_id(self._live.session_id)
            self._worker_call = PrefetchCall(
                self._live.parts.workers,
                worker,
                name,
                self._live.cache_salt,
                self._live.trace.metadata,
                self._live.sampling.structured_output,
            )

    # -- the answer -------------------------------------------------------------------

    def take_worker(self) -> Prefetched | None:
        """Returns the worker with the session's KV, and what it knows, if any."""
        worker_call = self._worker_call
        if worker_call is None or worker_call.has_ended:
            return None
        if not self._live.parts.workers.is_usable(worker_call.worker):
            return None
        worker_call.leave()
        return worker_call.prefetched()

    def close(self) -> None:
        """Abandons what is under way; may be called again."""
        self._begin = _nothing
        self._close_call()
        for handover in self._log.close():
            self._release(handover)

    def _close_call(self) -> None:
        if self._worker_call is not None:
            self._worker_call.close()
            self._worker_call = None
