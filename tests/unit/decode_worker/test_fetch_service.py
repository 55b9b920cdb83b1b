"""One PrefetchKv RPC without an engine: which fetches may follow one another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from decode_worker.fetch_orders import FetchEnd, FetchResult
from decode_worker.fetch_service import serve_fetches
from stream2llm.api.errors import EventOrderError, InvalidRequestError
from stream2llm.api.v1 import worker_pb2
from stream2llm.engine.failed_request import BAD_GRAMMAR
from stream2llm.engine.worker_metrics import GrammarMetrics
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.sessions.token_bytes import to_bytes
from tests.fakes.ordering_engine import OrderingEngine


class _Session:
    """Ends each fetch when it is let, or by an abort; the first `failures` fail."""

    session_id = "session"

    def __init__(self, *failures: Exception) -> None:
        self.may_end = asyncio.Event()
        self._failures = list(failures)
        self._is_aborted = False

    def spliced(self, keep_tokens: int, token_ids: list[int]) -> None:
        self.num_tokens = keep_tokens + len(token_ids)

    async def fetch(self, transfer: Any) -> FetchResult:
        await self.may_end.wait()
        if self._failures:
            raise self._failures.pop(0)
        end = FetchEnd.ABORTED if self._is_aborted else FetchEnd.FETCHED
        return FetchResult(end, num_blocks=self.num_tokens)

    async def abort(self) -> None:
        self._is_aborted = True
        self.may_end.set()


class _Sessions:
    def __init__(self, session: _Session) -> None:
        self._session = session

    @contextmanager
    def open(self, session_id: str, _cache_salt: str) -> Iterator[_Session]:
        yield self._session


class _Writer:
    """The other side has a message before `write` returns."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[worker_pb2.PrefetchKvResponse] = asyncio.Queue()
        self.may_return = asyncio.Event()

    async def write(self, message: worker_pb2.PrefetchKvResponse) -> None:
        self.sent.put_nowait(message)
        await self.may_return.wait()


def _opening(regex: str | None = None) -> worker_pb2.PrefetchKvRequest:
    opening = worker_pb2.OpenPrefetch(fetch_session_id="session")
    if regex is not None:
        opening.structured_output.regex = regex
    return worker_pb2.PrefetchKvRequest(open=opening)


def _handover(num_tokens: int) -> worker_pb2.Handover:
    params = {"remote_engine_id": "prefill", "remote_num_tokens": num_tokens}
    return worker_pb2.Handover(kv_transfer_params_json=json.dumps(params))


def _transfer_of(handover: worker_pb2.Handover) -> dict[str, Any]:
    transfer: dict[str, Any] = json.loads(handover.kv_transfer_params_json)
    return transfer


def _fetch(num_tokens: int) -> worker_pb2.PrefetchKvRequest:
    handover = _handover(num_tokens)
    tokens = list(range(num_tokens))
    return worker_pb2.PrefetchKvRequest(
        fetch=worker_pb2.FetchKv(
            keep_tokens=0, token_ids=to_bytes(as_tokens(tokens)), handover=handover
        )
    )


async def _serve(
    session: _Session,
    writer: _Writer,
    messages: AsyncIterator[worker_pb2.PrefetchKvRequest],
    engine: OrderingEngine | None = None,
) -> None:
    grammars = engine and GrammarMetrics("decode", engine.registry)
    worker: Any = SimpleNamespace(
        is_draining=False, require_open=lambda: None, engine=engine, grammars=grammars
    )
    sessions: Any = _Sessions(session)
    await serve_fetches(worker, sessions, messages, writer, _transfer_of)  # type: ignore[arg-type]


async def test_the_next_fetch_may_come_while_the_end_of_the_last_is_still_being_told() -> None:
    session, writer = _Session(), _Writer()
    session.may_end.set()
    ends: list[int] = []

    async def messages() -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        yield _opening()
        yield _fetch(3)
        ends.append((await writer.sent.get()).num_blocks)
        asyncio.get_running_loop().call_soon(writer.may_return.set)
        yield _fetch(5)
        ends.append((await writer.sent.get()).num_blocks)

    await _serve(session, writer, messages())
    assert ends == [3, 5]


async def test_an_rpc_that_ends_before_its_first_event_is_no_error() -> None:
    async def messages(
        *events: worker_pb2.PrefetchKvRequest,
    ) -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        for event in events:
            yield event

    await _serve(_Session(), _Writer(), messages())
    with pytest.raises(EventOrderError, match="the first event of KV prefetch must be open"):
        await _serve(_Session(), _Writer(), messages(_fetch(3)))


async def test_a_fetch_while_another_one_goes_on_is_out_of_order() -> None:
    session, writer = _Session(), _Writer()

    async def messages() -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        yield _opening()
        yield _fetch(3)
        yield _fetch(5)

    with pytest.raises(EventOrderError, match="the previous fetch has not ended"):
        await _serve(session, writer, messages())


@pytest.mark.parametrize(
    "failure", [InvalidRequestError("too long", field="splice"), RuntimeError("engine died")]
)
async def test_a_fetch_that_fails_is_told_and_the_next_one_goes_on(failure: Exception) -> None:
    session, writer = _Session(failure), _Writer()
    session.may_end.set()
    writer.may_return.set()
    told: list[worker_pb2.PrefetchKvResponse] = []

    async def messages() -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        yield _opening()
        for _ in range(2):
            yield _fetch(3)
            told.append(await writer.sent.get())

    await _serve(session, writer, messages())
    failed, fetched = told
    assert failed.end == worker_pb2.FETCH_END_FAILED
    assert str(failure) in failed.reason
    assert fetched.end == worker_pb2.FETCH_END_FETCHED


async def test_an_abort_ends_the_fetch_under_way() -> None:
    session, writer = _Session(), _Writer()
    writer.may_return.set()
    told: list[worker_pb2.PrefetchKvResponse] = []

    async def messages() -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        yield _opening()
        yield _fetch(3)
        yield worker_pb2.PrefetchKvRequest(abort=worker_pb2.AbortFetch())
        told.append(await writer.sent.get())

    await _serve(session, writer, messages())
    assert [each.end for each in told] == [worker_pb2.FETCH_END_ABORTED]


@pytest.mark.parametrize("end", ["compiled", "failed", "refused", "still compiling"])
async def test_a_structured_output_is_compiled_beside_the_fetches(end: str) -> None:
    session, writer, engine = _Session(), _Writer(), OrderingEngine()
    session.may_end.set()
    writer.may_return.set()
    if end == "refused":
        engine.refusal = InvalidRequestError("not this one")
    told: list[worker_pb2.PrefetchKvResponse] = []

    async def messages() -> AsyncIterator[worker_pb2.PrefetchKvRequest]:
        yield _opening(regex="[a-z]+")
        if end != "refused":
            await engine.ordered.wait()
        if end in ("compiled", "failed"):
            engine.finish(f"{BAD_GRAMMAR}no" if end == "failed" else None)
        yield _fetch(3)
        told.append(await writer.sent.get())

    await asyncio.wait_for(_serve(session, writer, messages(), engine), 5)
    assert [each.end for each in told] == [worker_pb2.FETCH_END_FETCHED]
    assert engine.num_observed("decode") == (1 if end == "compiled" else 0)
    assert engine.aborted == (list(engine.orders) if end == "still compiling" else [])
