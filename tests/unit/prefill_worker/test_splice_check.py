"""What a prefill session refuses before its engine sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.engine import MAX_REVISION, PrefillSession
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.vllm_engine import EngineInfo

pytestmark = pytest.mark.unit


class FakeEngine:
    """An engine that takes whatever it is sent, and counts it."""

    info = EngineInfo(max_model_len=100, num_kv_blocks=10, block_size=32, vocab_size=50)

    def __init__(self) -> None:
        self.num_requests = 0

    async def build_request(
        self,
        request_id: str,
        token_ids: list[int],
        params: Any,
        _cache_salt: str,
        *,
        trace: Any = None,
    ) -> Any:
        return SimpleNamespace(request_id=request_id)

    async def submit(self, request: Any) -> Any:
        self.num_requests += 1
        return object()


@pytest.mark.parametrize(
    ("splice", "field"),
    [
        ({"revision": 3}, "splice.revision"),
        ({"revision": 0}, "splice.revision"),
        ({"revision": MAX_REVISION + 1}, "splice.revision"),
        ({"token_ids": [1, 50]}, "splice.token_ids"),
        ({"token_ids": [2**32 - 1]}, "splice.token_ids"),
        ({"token_ids": [1] * 100}, "splice.token_ids"),
        ({"keep_tokens": 5}, "splice.keep_tokens"),
        ({"stable_tokens": 6}, "splice.stable_tokens"),
        ({"keep_tokens": 0, "token_ids": [], "seal": True}, "seal"),
    ],
)
async def test_a_splice_that_cannot_be_changes_nothing(splice: dict[str, Any], field: str) -> None:
    engine = FakeEngine()
    session = PrefillSession(engine, "s", SamplingParameters())  # type: ignore[arg-type]
    await session.splice(3, 0, [1, 2, 3, 4])
    whole = {"revision": 4, "keep_tokens": 4, "token_ids": [49]}
    with pytest.raises(InvalidRequestError) as caught:
        await session.splice(**{**whole, **splice})
    assert caught.value.field == field
    assert engine.num_requests == 1
