"""Sessions that fetch ahead: what they refuse before their engine sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prometheus_client import CollectorRegistry

from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.fetch_sessions import FetchSessions
from stream2llm.clock import ManualClock
from stream2llm.errors import InvalidRequestError

pytestmark = pytest.mark.unit


class FakeEngine:
    """Hears of hand-overs that nobody will read."""

    info = SimpleNamespace(block_size=32)

    def __init__(self) -> None:
        self.rejected: list[Any] = []

    async def reject_handover(self, request_id: str, transfer: Any) -> None:
        self.rejected.append(transfer)


def sessions_of(engine: FakeEngine) -> FetchSessions:
    return FetchSessions(engine, FetchMetrics(CollectorRegistry()), ManualClock())  # type: ignore[arg-type]


def test_an_id_that_is_taken_is_refused_and_its_owner_goes_on() -> None:
    sessions = sessions_of(FakeEngine())
    with sessions.open("a"):
        with (
            pytest.raises(InvalidRequestError, match="'a' is fetching already"),
            sessions.open("a"),
        ):
            pass
        with sessions.open("b"):
            pass
    with sessions.open("a"):
        pass


async def test_more_tokens_kept_than_there_were_is_refused_and_prefill_hears_of_it() -> None:
    engine = FakeEngine()
    refused = pytest.raises(InvalidRequestError, match=r"keep_tokens is 1; .* had 0 tokens")
    with sessions_of(engine).open("a") as session, refused:
        await session.fetch(1, [5], {"remote_engine_id": "x"})
    assert engine.rejected == [{"remote_engine_id": "x"}]
