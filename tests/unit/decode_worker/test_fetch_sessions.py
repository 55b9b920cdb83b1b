"""PrefetchKv on real sessions: their tokens, and who tells prefill of its blocks; no engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("vllm")

from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.fetch_orders import FetchEnd, FetchResult
from decode_worker.fetch_service import serve_fetches
from decode_worker.fetch_sessions import FetchSessions
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.clock import ManualClock

pytestmark = pytest.mark.unit

BLOCK_SIZE = 2


class _Stream:
    """The output of one request: its end, when the engine has one."""

    def __init__(self) -> None:
        self.end: asyncio.Future[FetchResult] = asyncio.get_running_loop().create_future()
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
        self.tokens: list[list[int]] = []
        self.rejected: list[Any] = []
        self._streams: dict[str, _Stream] = {}

    async def build_request(self, request_id: str, tokens: list[int], params: Any) -> Any:
        self.building.set()
        await self.may_submit.wait()
        return request_id, tokens

    async def submit(self, request: tuple[str, list[int]]) -> _Stream:
        request_id, tokens = request
        self.tokens.append(tokens[:-1])  # one more is there, so that a cache may hold all of them
        stream = self._streams[request_id] = _Stream()
        if self.may_fetch.is_set():
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
        self._metrics = FetchMetrics(CollectorRegistry())
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
        self.send(fetch=pb.FetchKv(keep_tokens=keep, token_ids=tokens, handover=handover))

    def abort(self) -> None:
        self.send(abort=pb.AbortFetch())

    async def end(self) -> pb.PrefetchKvResponse:
        """The end of the oldest fetch that nobody asked for."""
        return await asyncio.wait_for(self._told.get(), 5)

    async def close(self) -> None:
        self._messages.put_nowait(None)
        await asyncio.wait_for(self.serving, 5)


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
