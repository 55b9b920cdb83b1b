"""What the service makes of the scheduler's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker import service
from prefill_worker.engine import PrefillOutput
from prefill_worker.service import PrefillService, _progress
from stream2llm.api.errors import EventOrderError, InvalidRequestError
from stream2llm.api.events import DelayReason
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.v1 import inference_pb2, worker_pb2
from stream2llm.engine.failed_request import BAD_GRAMMAR
from stream2llm.engine.worker_metrics import GrammarMetrics
from stream2llm.serving.sessions.answer_use import AnswerUse, AnswerUses
from stream2llm.serving.settings.tenant_options import OTHERS
from tests.fakes.ordering_engine import OrderingEngine


@pytest.mark.parametrize(
    ("figures", "delay"),
    [
        ({}, None),
        ({"delay": ""}, None),
        ({"delay": "kv_memory"}, DelayReason.KV_MEMORY),
        ({"delay": "kv_leased"}, DelayReason.KV_LEASED),
    ],
)
def test_a_delay_becomes_its_reason(figures: dict[str, str], delay: DelayReason | None) -> None:
    progress = _progress({"revision": 2, "known_tokens": 7, **figures})
    assert progress == PrefillProgress(2, 7, delay=delay)


class FakeSession:
    """A session whose first token is there as soon as it is sealed."""

    def __init__(self, handover: dict[str, Any] | None) -> None:
        self.num_logprobs = None
        self.outputs: Any = None
        self.handover = handover
        self.num_cancels = 0

    async def splice(self, *args: Any, **kwargs: Any) -> None:
        self.outputs = object()

    async def cancel(self) -> None:
        self.num_cancels += 1


class Router:
    """The other end of the RPC: has the first token, and then closes or breaks."""

    def __init__(self) -> None:
        self.has_first_token = asyncio.Event()
        self.closes = asyncio.Event()
        self.messages: list[Any] = []

    async def write(self, message: Any) -> None:
        self.messages.append(message)
        if message.WhichOneof("event") == "first_token":
            self.has_first_token.set()

    async def requests(self) -> AsyncIterator[worker_pb2.PrefillSessionRequest]:
        yield worker_pb2.PrefillSessionRequest(open=worker_pb2.OpenPrefill(session_id="s"))
        yield worker_pb2.PrefillSessionRequest(seal=worker_pb2.SealPrefill(hand_over=True))
        await self.closes.wait()


async def served(
    monkeypatch: pytest.MonkeyPatch,
    handover: dict[str, Any] | None,
    num_tokens: int = 1,
    uses: AnswerUses | None = None,
) -> tuple[FakeSession, Router, asyncio.Task[None]]:
    """A session that has answered, and its RPC."""
    session, router = FakeSession(handover), Router()
    reasons = [*[None] * (num_tokens - 1), "length"]
    first, *more = (
        SimpleNamespace(token_ids=[7], logprobs=None, finish_reason=reason, stop_reason=None)
        for reason in reasons
    )

    async def outputs(_: Any) -> AsyncIterator[PrefillOutput]:
        figures = {"revision": 1, "known_tokens": 1, "uncomputed_at_seal_tokens": 0}
        yield PrefillOutput(figures, first, session.handover)  # type: ignore[arg-type]
        for each in more:
            yield PrefillOutput({}, each, None)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "PrefillSession", lambda *args, **_: session)
    monkeypatch.setattr(service, "prefill_outputs", outputs)
    worker: Any = SimpleNamespace(engine=SimpleNamespace(info=SimpleNamespace(vocab_size=10)))
    service_ = PrefillService(worker, uses or AnswerUses())
    running = asyncio.create_task(service_._run(router.requests(), router))  # type: ignore[arg-type]
    await asyncio.wait_for(router.has_first_token.wait(), 5)
    return session, router, running


HANDOVER = {"remote_block_ids": [[1, 2]]}


@pytest.mark.parametrize(
    ("handover", "num_cancels"),
    # Decode may be in the middle of reading it; blocks written anew would be wrong KV there.
    [(HANDOVER, 0), (None, 1)],
    ids=["handed over", "not handed over"],
)
async def test_an_rpc_that_breaks_frees_only_what_was_not_handed_over(
    monkeypatch: pytest.MonkeyPatch, handover: dict[str, Any] | None, num_cancels: int
) -> None:
    session, _, running = await served(monkeypatch, handover)
    running.cancel()
    await asyncio.wait({running})
    assert session.num_cancels == num_cancels


async def test_an_answer_that_goes_on_here_comes_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    uses = AnswerUses()
    session, router, running = await served(monkeypatch, None, num_tokens=3, uses=uses)
    router.closes.set()
    await asyncio.wait_for(running, 5)
    kinds = [message.WhichOneof("event") for message in router.messages]
    assert kinds == ["first_token", "step", "step"]
    ended = worker_pb2.TokenStep(token_ids=[7], finish_reason=inference_pb2.FINISH_REASON_LENGTH)
    assert router.messages[-1].step == ended
    assert uses.by_label == {OTHERS: AnswerUse(decoded_tokens=2)}
    assert not router.messages[0].first_token.step.finish_reason
    assert session.num_cancels == 1


async def test_a_router_that_closes_its_side_says_that_decode_has_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, router, running = await served(monkeypatch, HANDOVER)
    router.closes.set()
    await asyncio.wait_for(running, 5)
    assert session.num_cancels == 1


def opened(
    monkeypatch: pytest.MonkeyPatch, engine: OrderingEngine
) -> tuple[Router, asyncio.Task[None]]:
    """The RPC of a session with a structured output, which has sent its open event only."""
    router = Router()

    async def requests() -> AsyncIterator[worker_pb2.PrefillSessionRequest]:
        opening = worker_pb2.OpenPrefill(session_id="s")
        opening.sampling.structured_output.regex = "[a-z]+"
        yield worker_pb2.PrefillSessionRequest(open=opening)
        await router.closes.wait()

    monkeypatch.setattr(service, "PrefillSession", lambda *args, **_: FakeSession(None))
    grammars = GrammarMetrics("prefill", engine.registry)
    worker: Any = SimpleNamespace(engine=engine, grammars=grammars)
    running = asyncio.create_task(PrefillService(worker, AnswerUses())._run(requests(), router))  # type: ignore[arg-type]
    return router, running


async def test_a_structured_output_is_ordered_at_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OrderingEngine()
    router, running = opened(monkeypatch, engine)
    await asyncio.wait_for(engine.ordered.wait(), 5)
    (params,) = engine.orders.values()
    assert params.structured_outputs.regex == "[a-z]+"
    engine.finish()
    router.closes.set()
    with pytest.raises(EventOrderError, match="closed before its seal"):
        await asyncio.wait_for(running, 5)


async def test_what_cannot_be_compiled_ends_the_rpc(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OrderingEngine()
    _, running = opened(monkeypatch, engine)
    await asyncio.wait_for(engine.ordered.wait(), 5)
    engine.finish(f"{BAD_GRAMMAR}too many rules")
    with pytest.raises(InvalidRequestError, match="cannot be compiled: too many rules"):
        await asyncio.wait_for(running, 5)


async def test_what_the_engine_does_not_take_ends_the_rpc(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OrderingEngine()
    engine.refusal = InvalidRequestError("the engine refuses the request: no such thing")
    _, running = opened(monkeypatch, engine)
    with pytest.raises(InvalidRequestError, match=r"structured_output cannot be .*: no such thing"):
        await asyncio.wait_for(running, 5)
    assert not engine.orders


async def test_an_order_ends_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OrderingEngine()
    _, running = opened(monkeypatch, engine)
    await asyncio.wait_for(engine.ordered.wait(), 5)
    running.cancel()
    await asyncio.wait({running})
    assert engine.aborted == list(engine.orders)
