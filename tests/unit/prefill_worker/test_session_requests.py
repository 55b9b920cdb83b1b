"""What a prefill session sends its engine, and what it refuses before its engine sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from prefill_worker.engine import MAX_REVISION, PrefillSession
from prefill_worker.local_engine import core_request
from prefill_worker.session_state import WIRE_KEY, ContextEvent
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.answer_penalty import ANSWER_TOKENS_KEY
from stream2llm.engine.vllm_engine import EngineInfo


class Engine:
    """Keeps the sampling parameters of the requests that it is sent."""

    info = EngineInfo(max_model_len=100, num_kv_blocks=10, block_size=32, vocab_size=50)

    def __init__(self) -> None:
        self.sent: list[SamplingParams] = []

    async def build_request(
        self, request_id: str, token_ids: list[int], params: SamplingParams, salt: str, **_: Any
    ) -> EngineCoreRequest:
        return core_request(request_id, token_ids, params, salt)

    async def submit(self, request: EngineCoreRequest) -> object:
        await self.send(request)
        return SimpleNamespace()

    async def send(self, request: EngineCoreRequest) -> None:
        assert request.sampling_params is not None
        self.sent.append(request.sampling_params)


async def test_the_seal_says_how_much_of_the_answer_there_is() -> None:
    """A session that was at another router has its answer's tokens in the last splice alone."""
    sampling = SamplingParameters(min_tokens=3, min_p=0.5, logit_bias={5: 1.0}, bad_words=((6, 7),))
    for answer_tokens, min_tokens in ((0, 1), (2, 1), (3, 0)):
        engine = Engine()
        session = PrefillSession(engine, "s", sampling)  # type: ignore[arg-type]
        await session.splice(1, 0, [1, 2])
        await session.splice(2, 2, [3, 4, 5, 6], seal=True, answer_tokens=answer_tokens)
        sealed = engine.sent[-1]
        assert sealed.extra_args[ANSWER_TOKENS_KEY] == answer_tokens
        assert (sealed.max_tokens, sealed.min_tokens) == (1, min_tokens)
        assert (sealed.min_p, sealed.logit_bias) == (0.5, {5: 1.0})
        assert sealed.bad_words_token_ids == [[6, 7]]


async def test_a_whole_session_in_one_event_says_so_too() -> None:
    engine = Engine()
    session = PrefillSession(engine, "s", SamplingParameters(min_tokens=2))  # type: ignore[arg-type]
    await session.splice(1, 0, [1, 2, 3], seal=True, answer_tokens=2)
    assert [params.min_tokens for params in engine.sent] == [0]


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


async def test_a_seal_may_ask_for_the_whole_answer() -> None:
    """For what is left of it, where the session was at another worker."""
    for answer_tokens, max_tokens, min_tokens in ((0, 9, 4), (3, 6, 1)):
        engine = Engine()
        session = PrefillSession(engine, "s", SamplingParameters(min_tokens=4))  # type: ignore[arg-type]
        await session.splice(1, 0, [1, 2])
        await session.splice(
            2, 2, [3, 4, 5, 6], seal=True, answer_tokens=answer_tokens, answer_max_tokens=9
        )
        opened, sealed = engine.sent
        assert (opened.max_tokens, sealed.max_tokens) == (1, max_tokens)
        assert sealed.min_tokens == min_tokens
        assert ContextEvent.from_wire((sealed.extra_args or {})[WIRE_KEY]).answers


async def test_an_answer_that_goes_on_here_is_not_handed_over() -> None:
    session = PrefillSession(Engine(), "s", SamplingParameters())  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="not handed over"):
        await session.splice(1, 0, [1, 2], seal=True, hand_over=True, answer_max_tokens=9)
