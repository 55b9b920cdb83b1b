"""PrefetchKv on real sessions: their tokens, and who notifies prefill of its blocks; no engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("vllm")

from decode_worker.answer_order import AnswerOrder
from decode_worker.digest_check import BadKv
from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.fetch_orders import FetchEnd, FetchResult
from decode_worker.fetch_service import serve_fetches
from decode_worker.fetch_sessions import FetchSessions
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.tenant import MIN_PRIORITY, TenantShare
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.sessions.token_bytes import to_bytes
from stream2llm.serving.system.clock import ManualClock

BLOCK_SIZE = 2


class _Stream:
    """The output of one request: its end, when the engine has one."""

    def __init__(self) -> None:
        self.end: asyncio.Future[FetchResult | BadKv] = asyncio.get_running_loop().create_future()
        self.finished = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        result = await self.end
        self.finished = True
        yield SimpleNamespace(kv_transfer_params=result.to_wire(), finished=True)


class _Engine:
    """Fetches what it is given, as soon as the test lets it."""

    def __init__(self) -> None:
        self.info = SimpleNamespace(block_size=BLOCK_SIZE)
        self.may_submit, self.may_fetch = asyncio.Event(), asyncio.Event()
        self.may_submit.set()
        self.may_fetch.set()
        self.building, self.submitted = asyncio.Event(), asyncio.Event()
        # What is read is not what prefill computed.
        self.is_bad = False
        self.tokens: list[list[int]] = []
        self.ranks: list[int] = []
        self.rejected: list[Any] = []
        self._streams: dict[str, _Stream] = {}

    async def build_request(
        self, request_id: str, tokens: list[int], params: Any, _cache_salt: str
    ) -> Any:
        self.building.set()
        await self.may_submit.wait()
        return SimpleNamespace(request_id=request_id, tokens=tokens, priority=0)

    async def submit(self, request: Any) -> _Stream:
        # One more is there, so that a cache may hold all of them.
        self.tokens.append(request.tokens[:-1])
        self.ranks.append(request.priority)
        stream = self._streams[request.request_id] = _Stream()
        if self.is_bad:
            stream.end.set_result(BadKv(1, "1 values differ: block 0 layer 0"))
        elif self.may_fetch.is_set():
            stream.end.set_result(FetchResult(FetchEnd.FETCHED, num_blocks=1))
        self.submitted.set()
        return stream

    async def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is not None and not stream.end.done():
            stream.end.set_result(FetchResult(FetchEnd.ABORTED))

    async def reject_handover(self, request_id: str, transfer: dict[str, Any]) -> None:
        self.rejected.append(transfer["name"])


def _transfer_of(handover: pb.Handover) -> dict[str, Any]:
    """The transfer parameters; refuses those that name no engine."""
    transfer: dict[str, Any] = json.loads(handover.kv_transfer_params_json)
    if "remote_engine_id" not in transfer:
        raise InvalidRequestError("remote_engine_id is missing")
    return transfer


class _Rpc:
    """One PrefetchKv RPC, message by message."""

    def __init__(self) -> None:
        self.engine: Any = _Engine()
        self.worker: Any = SimpleNamespace(
            engine=self.engine, is_draining=False, require_open=lambda: None
        )
        self.registry = CollectorRegistry()
        self._metrics = FetchMetrics(self.registry)
        self._messages: asyncio.Queue[pb.PrefetchKvRequest | None] = asyncio.Queue()
        self._has_taken_all = asyncio.Event()
        self._told: asyncio.Queue[pb.PrefetchKvResponse] = asyncio.Queue()
        self.send(open=pb.OpenPrefetch(fetch_session_id="session"))
        self.serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        sessions = FetchSessions(self.engine, self._metrics, ManualClock())
        writer: Any = SimpleNamespace(write=self._told.put)
        await serve_fetches(self.worker, sessions, self._requests(), writer, _transfer_of)

    async def _requests(self) -> AsyncIterator[pb.PrefetchKvRequest]:
        while True:
            if self._messages.empty():
                self._has_taken_all.set()
            message = await self._messages.get()
            if message is None:
                return
            yield message

    async def has_taken_all(self) -> None:
        """Returns when every message has been dealt with, as far as the reader does it."""
        await asyncio.wait_for(self._has_taken_all.wait(), 5)

    def send(self, **event: Any) -> None:
        self._has_taken_all.clear()
        self._messages.put_nowait(pb.PrefetchKvRequest(**event))

    def fetch(
        self,
        name: str,
        keep: int,
        *tokens: int,
        num_offered: int | None = None,
        params: str | None = None,
    ) -> None:
        given = {
            "name": name,
            "remote_engine_id": "prefill",
            "remote_num_tokens": keep + len(tokens) if num_offered is None else num_offered,
        }
        handover = pb.Handover(kv_transfer_params_json=params or json.dumps(given))
        self.send(
            fetch=pb.FetchKv(
                keep_tokens=keep, token_ids=to_bytes(as_tokens(tokens)), handover=handover
            )
        )

    def abort(self) -> None:
        self.send(abort=pb.AbortFetch())

    async def end(self) -> pb.PrefetchKvResponse:
        """The oldest result of a fetch that has not been taken."""
        return await asyncio.wait_for(self._told.get(), 5)

    async def close(self) -> None:
        self._messages.put_nowait(None)
        await asyncio.wait_for(self.serving, 5)


async def test_a_fetch_ranks_behind_every_answer() -> None:
    last = TenantShare("last", priority=MIN_PRIORITY)
    rpc = _Rpc()
    rpc.fetch("first", 0, 1, 2)
    await rpc.end()
    assert rpc.engine.ranks[0] > AnswerOrder().submitted(last, 10**12).rank
    await rpc.close()


async def test_tokens_of_a_fetch_that_is_refused_count_all_the_same() -> None:
    rpc = _Rpc()
    rpc.worker.is_draining = True
    rpc.fetch("refused", 0, 1, 2)
    assert (await rpc.end()).end == pb.FETCH_END_REFUSED
    rpc.worker.is_draining = False
    rpc.fetch("next", 2, 3, 4)
    assert (await rpc.end()).end == pb.FETCH_END_FETCHED
    assert rpc.engine.tokens == [[1, 2, 3, 4]]
    assert rpc.engine.rejected == ["refused"]
    await rpc.close()


async def test_tokens_of_a_fetch_whose_hand_over_says_nothing_count_all_the_same() -> None:
    rpc = _Rpc()
    rpc.fetch("bad", 0, 1, 2, params="{}")
    assert (await rpc.end()).end == pb.FETCH_END_FAILED
    rpc.fetch("next", 2, 3, 4)
    await rpc.end()
    assert rpc.engine.tokens == [[1, 2, 3, 4]]
    await rpc.close()


@pytest.mark.parametrize("num_offered", [2, 6])
async def test_tokens_that_are_not_those_of_the_hand_over_are_not_fetched(num_offered: int) -> None:
    rpc = _Rpc()
    rpc.fetch("differs", 0, 1, 2, 3, 4, num_offered=num_offered)
    end = await rpc.end()
    assert end.end == pb.FETCH_END_FAILED
    assert end.reason == (f"the fetch is of 4 tokens, its hand-over is the KV of {num_offered}")
    assert not rpc.engine.tokens
    assert rpc.engine.rejected == ["differs"]
    await rpc.close()


async def test_a_router_that_counts_on_tokens_we_never_got_is_refused() -> None:
    rpc = _Rpc()
    rpc.fetch("first", 0, 1, 2)
    await rpc.end()
    rpc.fetch("second", 3, 4)
    with pytest.raises(InvalidRequestError, match="is 3, the previous fetch had 2 tokens"):
        await asyncio.wait_for(rpc.serving, 5)
    assert rpc.engine.tokens == [[1, 2]]


async def test_an_abort_straight_behind_its_fetch_is_not_lost() -> None:
    rpc = _Rpc()
    rpc.engine.may_fetch.clear()
    rpc.fetch("vain", 0, 1, 2)
    rpc.abort()
    assert (await rpc.end()).end == pb.FETCH_END_ABORTED
    await rpc.close()


async def test_an_abort_while_the_engine_is_told_of_the_fetch_is_not_lost() -> None:
    rpc = _Rpc()
    rpc.engine.may_fetch.clear()
    rpc.engine.may_submit.clear()
    rpc.fetch("vain", 0, 1, 2)
    await asyncio.wait_for(rpc.engine.building.wait(), 5)
    rpc.abort()
    await rpc.has_taken_all()
    rpc.engine.may_submit.set()
    assert (await rpc.end()).end == pb.FETCH_END_ABORTED
    await rpc.close()


async def test_an_abort_that_comes_behind_the_end_is_not_of_the_next_fetch() -> None:
    rpc = _Rpc()
    rpc.fetch("first", 0, 1, 2)
    assert (await rpc.end()).end == pb.FETCH_END_FETCHED
    rpc.abort()
    rpc.fetch("second", 2, 3, 4)
    assert (await rpc.end()).end == pb.FETCH_END_FETCHED
    await rpc.close()


async def test_an_rpc_that_ends_straight_behind_a_fetch_leaves_no_block_behind() -> None:
    rpc = _Rpc()
    rpc.engine.may_submit.clear()
    rpc.fetch("left", 0, 1, 2)
    await rpc.close()
    assert rpc.engine.rejected == ["left"]


def test_an_id_that_is_taken_is_refused_and_its_owner_goes_on() -> None:
    engine: Any = SimpleNamespace(info=SimpleNamespace(block_size=BLOCK_SIZE))
    sessions = FetchSessions(engine, FetchMetrics(CollectorRegistry()), ManualClock())
    with sessions.open("a"):
        with (
            pytest.raises(InvalidRequestError, match="'a' is already prefetching"),
            sessions.open("a"),
        ):
            pass
        with sessions.open("b"):
            pass
    with sessions.open("a"):
        pass


async def test_a_fetch_that_brought_other_kv_has_failed_and_counts() -> None:
    rpc = _Rpc()
    rpc.engine.is_bad = True
    rpc.fetch("bad", 0, 1, 2)
    end = await rpc.end()
    assert (end.end, end.reason, end.num_blocks) == (pb.FETCH_END_FAILED, "KV_DIGEST", 0)
    rpc.engine.is_bad = False
    rpc.fetch("next", 2, 3, 4)
    assert (await rpc.end()).end == pb.FETCH_END_FETCHED
    await rpc.close()
    counted = {
        when: rpc.registry.get_sample_value(
            "stream2llm_kv_digest_mismatches_total", {"role": "decode", "when": when}
        )
        for when in ("prefetched", "after_seal")
    }
    assert counted == {"prefetched": 1, "after_seal": 0}
