"""The sessions that a decode worker prefetches for: one object per PrefetchKv RPC.

Each knows its session's tokens, submits one fetch at a time to the engine, and
keeps the ledger until the answer or the end of the RPC settles it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from decode_worker.answer_order import LAST_RANK
from decode_worker.digest_check import BadKv
from decode_worker.fetch_ledger import FetchLedger
from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.fetch_orders import FetchEnd, FetchOrder, FetchResult, LocalTokens, order_to_wire
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError, UnavailableError
from stream2llm.api.handover import NO_FETCHED_TOKENS
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.kv_digest import DIGEST_KEY, BlockKeys
from stream2llm.engine.output_stream import only_output
from stream2llm.engine.vllm_engine import Engine
from stream2llm.engine.vllm_sampling import to_vllm
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.system.clock import Clock

_SAMPLING = SamplingParameters(max_tokens=1, temperature=0.0)
# Follows the tokens to fetch, so that the cache can hit all of them; it is never computed.
_ONE_MORE_TOKEN = 0
# Why a fetch failed whose KV was not what prefill had computed.
BAD_DIGEST = "KV_DIGEST"


class FetchSession:
    """The fetches of one session, one at a time."""

    def __init__(
        self,
        session_id: str,
        engine: Engine,
        metrics: FetchMetrics,
        clock: Clock,
        cache_salt: str = "",
    ) -> None:
        """Opens a fetch session; only requests of the same `cache_salt` find the KV it fetches."""
        self.session_id = session_id
        self._cache_salt = cache_salt
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._tokens: list[int] = []
        # How many times it was set.
        self._num_spliced = 0
        self._request_id = ""
        self._is_given_up = False
        # Last use of the session's KV at this worker.
        self._since_s = clock.monotonic_s()
        self._bytes_per_block = 0
        self.ledger = FetchLedger(engine.info.block_size)
        self._keys = BlockKeys(engine.info.block_size)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the sequence that the newest fetch covers."""
        return len(self._tokens)

    def spliced(self, keep_tokens: int, token_ids: list[int]) -> None:
        """Sets the next fetch's sequence: `keep_tokens` tokens of the previous one, then `token_ids`.

        Call it for each fetch message, even if its fetch fails: the next message counts
        from this sequence. Raises InvalidRequestError, and changes nothing, when the
        previous sequence has fewer than `keep_tokens` tokens.
        """
        if keep_tokens > len(self._tokens):
            raise InvalidRequestError(
                f"is {keep_tokens}, the previous fetch had {len(self._tokens)} tokens",
                field="fetch.keep_tokens",
            )
        self.ledger.spliced(keep_tokens)
        self._keys.cut(keep_tokens // self._keys.block_size)
        del self._tokens[keep_tokens:]
        self._tokens += token_ids
        self._num_spliced += 1
        self._is_given_up = False

    def first_tokens(self, num_tokens: int, num_fetches: int) -> list[int] | None:
        """The sequence's first tokens; None unless it is that of the fetch of this number."""
        if num_fetches != self._num_spliced or num_tokens > len(self._tokens):
            return None
        return self._tokens[:num_tokens]

    async def fetch(self, transfer: dict[str, Any]) -> FetchResult:
        """Fetches the KV of the tokens that `spliced` has set.

        Prefill is notified that its blocks were read, or that they will not be.
        """
        self._request_id = unique_id(f"{self.session_id}-fetch")
        try:
            result = await self._fetch(transfer)
        finally:
            self._request_id = ""
        if result.end is FetchEnd.FETCHED:
            self.ledger.fetched(len(self._tokens), result.num_blocks)
            self._bytes_per_block = result.bytes_per_block
        self._metrics.fetch_ended(result)
        return result

    async def _fetch(self, transfer: dict[str, Any]) -> FetchResult:
        order = FetchOrder(
            self.session_id,
            len(self._tokens) // self._engine.info.block_size,
            self._since_s,
            self._keys.to_wire(self._tokens) if DIGEST_KEY in transfer else b"",
        )
        self._since_s = self._clock.monotonic_s()
        try:
            stream = await self._begin(order, transfer)
        except BaseException as error:
            # The engine does not have the request, so it cannot reject the hand-over itself.
            await asyncio.shield(self._engine.reject_handover(self._request_id, transfer))
            if isinstance(error, Stream2LLMError | ValueError):
                return FetchResult(FetchEnd.FAILED, str(error))
            raise
        try:
            if self._is_given_up:  # while the engine was taking the request
                await self._engine.abort(self._request_id)
            async for output in stream:
                result = FetchResult.from_wire(output.kv_transfer_params)
                if result is not None:
                    return result
                if BadKv.from_wire(output.kv_transfer_params) is not None:
                    self._metrics.mismatched("prefetched")
                    return FetchResult(FetchEnd.FAILED, BAD_DIGEST)
                if output.finished:
                    return self._ended_otherwise(only_output(output).finish_reason)
        except Stream2LLMError as error:
            return FetchResult(FetchEnd.FAILED, error.reason)
        finally:
            if not stream.finished:
                await asyncio.shield(self._engine.abort(self._request_id))
        return FetchResult(FetchEnd.ABORTED)

    async def _begin(self, order: FetchOrder, transfer: dict[str, Any]) -> Any:
        params = to_vllm(
            _SAMPLING,
            max_tokens=1,
            seed=None,
            extra_args={**order_to_wire(order), "kv_transfer_params": transfer},
        )
        tokens = [*self._tokens, _ONE_MORE_TOKEN]
        request = await self._engine.build_request(
            self._request_id, tokens, params, self._cache_salt
        )
        request.priority = LAST_RANK
        return await self._engine.submit(request)

    def _ended_otherwise(self, finish_reason: str | None) -> FetchResult:
        if self._is_given_up or finish_reason == "abort":
            return FetchResult(FetchEnd.ABORTED)
        return FetchResult(FetchEnd.FAILED, "KV_LOST")

    async def abort(self) -> None:
        """Aborts the newest fetch, also one that the engine does not have yet; `fetch` returns."""
        self._is_given_up = True
        if self._request_id:
            await self._engine.abort(self._request_id)

    def settle(self, num_prompt_tokens: int, local: LocalTokens) -> None:
        """Settles the ledger when the session's answer begins."""
        settled = self.ledger.settle(num_prompt_tokens, local.num_tokens)
        self._metrics.settled(settled, local.bytes_per_block)

    def give_up(self) -> None:
        """Counts what is not settled as wasted when the session ends here."""
        self._metrics.settled(self.ledger.give_up(), self._bytes_per_block)


class FetchSessions:
    """The open sessions by id."""

    def __init__(self, engine: Engine, metrics: FetchMetrics, clock: Clock) -> None:
        self._engine = engine
        self.metrics = metrics
        self._clock = clock
        self._open: dict[str, FetchSession] = {}

    @contextmanager
    def open(self, session_id: str, cache_salt: str = "") -> Iterator[FetchSession]:
        """Opens a session for its RPC's duration; raises InvalidRequestError for an id in use."""
        if session_id in self._open:
            raise InvalidRequestError(
                f"session {session_id!r} is already prefetching", field="open.fetch_session_id"
            )
        session = FetchSession(session_id, self._engine, self.metrics, self._clock, cache_salt)
        self._open[session_id] = session
        try:
            yield session
        finally:
            del self._open[session_id]
            session.give_up()

    def first_tokens(self, session_id: str, num_tokens: int, num_fetches: int) -> list[int]:
        """The first tokens of what a session has fetched with its fetch of that number.

        Raises UnavailableError when it is not open, or its newest fetch is another one.
        """
        session = self._open.get(session_id)
        tokens = None if session is None else session.first_tokens(num_tokens, num_fetches)
        if tokens is None:
            raise UnavailableError(
                f"not the state of session {session_id!r} after fetch {num_fetches}",
                reason=NO_FETCHED_TOKENS,
            )
        return tokens

    def settle(self, session_id: str, num_prompt_tokens: int, local: LocalTokens) -> None:
        """Settles the session of an answer that begins, if it has prefetched."""
        session = self._open.get(session_id)
        if session is not None:
            session.settle(num_prompt_tokens, local)
            return
        ledger = FetchLedger(self._engine.info.block_size)
        settled = ledger.settle(num_prompt_tokens, local.num_tokens)
        self.metrics.settled(settled, local.bytes_per_block)
