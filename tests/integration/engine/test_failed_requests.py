"""What gets past every check all the same ends one request, and not the engine.

Real schedulers with fake executors; what is wrong is put where no service would let it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request

from decode_worker.fetch_orders import FetchOrder, FinalOrder, order_to_wire
from prefill_worker.engine import PrefillSession, prefill_outputs
from prefill_worker.local_engine import core_request
from prefill_worker.session_state import WIRE_KEY, ContextEvent
from stream2llm.api.errors import InternalError
from stream2llm.api.handover import HANDOVER_KEY
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.failed_request import FAILED_REQUEST
from stream2llm.engine.vllm_sampling import token_step
from tests.scheduling.engine_settings import EngineSettings, block_hasher
from tests.scheduling.handover_pair import Pair
from tests.scheduling.session_engine import SessionEngine

GREEDY = SamplingParameters(max_tokens=4, temperature=0.0)
CONTEXT = list(range(1000, 1040))


@pytest.mark.parametrize(
    "event",
    [
        ContextEvent(2, keep_tokens=1000, seal=False),
        ContextEvent(2, keep_tokens="many", seal=False),  # type: ignore[arg-type]
    ],
    ids=["keeps more than there is", "a figure that is none"],
)
async def test_an_event_that_cannot_be_ends_its_session_alone(
    event: ContextEvent, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SessionEngine(EngineSettings())
    broken, other = (PrefillSession(engine, name, GREEDY) for name in ("broken", "other"))  # type: ignore[arg-type]
    for session in (broken, other):
        await session.splice(1, 0, list(range(30)))
    engine.run()
    with caplog.at_level(logging.ERROR):
        await engine.send(broken._event_request([1, 2, 3], {WIRE_KEY: event.to_wire()}, 0, 1))
    assert "request_failed request_id=broken" in caplog.text
    engine.run()
    await other.splice(2, 30, [7], seal=True)
    engine.run()
    ended = [output async for output in prefill_outputs(broken.outputs)][-1].sampled
    with pytest.raises(InternalError, match="could not handle the request"):
        token_step(ended, None)
    answer = [output async for output in prefill_outputs(other.outputs)][-1].sampled
    assert len(token_step(answer, None).token_ids) == 1
    engine.scheduler.check_integrity()
    assert not engine.scheduler.has_unfinished_requests()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


WHOLE: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2]],
    "remote_engine_id": "engine",
    "remote_request_id": "s-a",
    "remote_host": "localhost",
    "remote_port": 1,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 8,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
}


@pytest.mark.parametrize("missing", sorted(WHOLE))
@pytest.mark.parametrize(
    "order", [FinalOrder("a"), FetchOrder("a", 2, 0.0)], ids=["final", "fetch"]
)
def test_a_handover_without_one_key_ends_its_request_alone(
    pair: Pair, missing: str, order: FinalOrder | FetchOrder
) -> None:
    transfer = {key: value for key, value in WHOLE.items() if key != missing}
    extra = {**order_to_wire(order), "kv_transfer_params": transfer}
    _ends_alone(pair, extra)


@pytest.mark.parametrize("order", [{"fetch": {}}, {"final": {"nobody": 1}}, {}, 7])
def test_an_order_that_is_none_ends_its_request_alone(pair: Pair, order: Any) -> None:
    _ends_alone(pair, {HANDOVER_KEY: order or {"neither": {}}, "kv_transfer_params": WHOLE})


def test_a_fetch_that_the_connector_cannot_take_ends_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails when the fetch begins: the base class knows of it then."""
    take = pair.decode.connector.on_new_request

    def fail(request: Request) -> None:
        if request.request_id == "broken":
            raise RuntimeError("not this one")
        take(request)

    monkeypatch.setattr(pair.decode.connector, "on_new_request", fail)
    extra = {**order_to_wire(FetchOrder("a", 2, 0.0)), "kv_transfer_params": WHOLE}
    _ends_alone(pair, extra)


def _ends_alone(pair: Pair, extra_args: dict[str, Any]) -> None:
    """The request ends with its error; another session is answered exactly, and nothing stays."""
    params = SamplingParams(max_tokens=2, temperature=0.0, extra_args=extra_args)
    core = core_request("broken", list(range(9)), params)
    hasher = block_hasher(EngineSettings())
    pair.decode.add_request(Request.from_engine_core_request(core, hasher))
    assert pair.decode.has_requests()
    output = pair.decode.schedule()
    told = pair.decode.update_from_output(output, pair.reader.execute(output))
    (ended,) = (each for client in told.values() for each in client.outputs)
    assert (ended.finish_reason, ended.stop_reason) == (FinishReason.ERROR, FAILED_REQUEST)
    pair.open("a", CONTEXT)
    pair.settle()
    pair.seal("a", (5,))
    pair.settle()
    assert pair.is_exact("a")
    pair.check_empty()
