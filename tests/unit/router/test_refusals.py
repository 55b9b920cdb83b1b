"""Refused requests are counted by reason, and logged without flooding the log."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from router.refusals import Reason, label_of
from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.security.guard import REASONS
from stream2llm.security.line_budget import LINES_PER_PERIOD, PERIOD_S, LineBudget
from stream2llm.serving.observability import logs
from tests.polling import eventually
from tests.router_ring import Ring, soon

ROOT = Path(__file__).parents[3]
# What can reach a client of a router. Its own modules, the workers', and what both share.
SOURCES = [
    *(ROOT / "router").glob("*.py"),
    *(ROOT / "decode_worker").glob("*.py"),
    # Neither a profile's measurement nor the loading of a policy answers a client.
    *(p for p in (ROOT / "prefill_worker").glob("*.py") if not re.search("profil|policy_", p.name)),
    # What a client's own arguments are refused for is said on the client's side.
    *(
        {*(ROOT / "stream2llm" / "api").glob("*.py")}
        - {ROOT / f"stream2llm/api/{name}.py" for name in ("arguments", "credentials", "tls")}
    ),
    *(
        ROOT / "stream2llm" / f"{name}.py"
        for name in (
            "engine/output_stream",
            "engine/vllm_sampling",
            "serving/sessions/request_check",
            "serving/rpc/undecodable",
        )
    ),
]
# Said to the controller, or at a start, never to a client.
NOT_FOR_CLIENTS = {"PORT_TAKEN", "NOT_CONFIRMED", "UNKNOWN"}
# Counted by `stream2llm.security.guard`, before there is an RPC for the router to count.
NOT_ADMITTED = set(REASONS)


def reasons_in(path: Path) -> set[str]:
    """The constants given as `reason=` or `default_reason = `."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "reason":
            found |= _text(node.value)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "default_reason" for t in targets):
                found |= _text(node.value)
    return found


def _text(node: ast.expr) -> set[str]:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value
    return {node.value} if is_text else set()


def test_every_reason_that_a_client_can_get_is_a_label_of_its_own() -> None:
    given = set().union(*map(reasons_in, SOURCES)) - NOT_FOR_CLIENTS - NOT_ADMITTED
    assert len(given) > 25
    assert given <= set(Reason.__members__), "add them to router.refusals.Reason"


def test_what_is_not_known_is_one_label_and_our_bug_another() -> None:
    assert label_of(OverloadedError("", reason="FROM_THE_FUTURE")) is Reason.OTHER
    assert label_of(ZeroDivisionError()) is Reason.INTERNAL
    assert label_of(InvalidRequestError("")) is Reason.INVALID_REQUEST


def test_a_flood_of_one_reason_hides_no_other_and_says_how_many_it_was() -> None:
    budget = LineBudget()
    taken = [budget.take(Reason.DRAINING, 0.0) for _ in range(LINES_PER_PERIOD + 5)]
    assert taken == [0] * LINES_PER_PERIOD + [None] * 5
    assert budget.take(Reason.UNKNOWN_MODEL, 0.0) == 0
    assert budget.take(Reason.DRAINING, PERIOD_S) == 5
    assert budget.take(Reason.DRAINING, 2 * PERIOD_S) == 0


def refusals_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    formatter = logs.TextFormatter()
    return [formatter.format(r) for r in caplog.records if r.name == "router.refusals"]


async def fails(call: Any) -> None:
    assert await soon(call.code()) is not grpc.StatusCode.OK


async def test_too_many_sessions_are_in_the_log_and_in_the_metrics(
    make_ring: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ring: Ring = await make_ring(max_open_sessions=1)
    held = await ring.opened("hello")
    await held.next("accepted")
    forged = "mine\nINFO:router.refusals:refused all is well"
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x", session_id=forged)))
    second = ring.converse()
    await second.failure()
    generate, stream = refusals_in(caplog)
    assert "INFO router.refusals: refused rpc=Generate session_id=mine\\nINFO" in generate
    assert "reason=TOO_MANY_SESSIONS" in generate
    assert "\n" not in generate
    assert "rpc=StreamGenerate session_id=(not known yet) peer=ipv4:127.0.0.1:" in stream
    assert ring.metric("stream2llm_errors_total", reason="TOO_MANY_SESSIONS") == 2
    held.call.cancel()


async def test_each_other_refusal_is_counted_under_its_reason(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x", model="other")))
    await fails(ring.stub.GetModelInfo(pb.GetModelInfoRequest(model="other")))
    bad = pb.SamplingParameters(temperature=-1)
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x", sampling=bad)))
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x " * 5000, session_id="long")))
    ring.show()  # no workers
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x")))
    counted = {
        reason: ring.metric("stream2llm_errors_total", reason=reason)
        for reason in ("UNKNOWN_MODEL", "BAD_SAMPLING", "CONTEXT_TOO_LONG", "NO_PREFILL_WORKER")
    }
    assert counted == dict(zip(counted, (2, 1, 1, 1), strict=True))
    assert "rpc=GetModelInfo" in refusals_in(caplog)[0]
    assert (
        "session_ended session_id=long outcome=invalid_argument reason=CONTEXT_TOO_LONG"
        in caplog.text
    )


async def test_a_message_too_large_is_named_counted_and_logged(
    make_ring: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ring: Ring = await make_ring(max_message_bytes=1 << 16)
    session = await ring.opened("hello", session_id="streamed")
    await session.next("accepted")
    await session.append("x" * (1 << 17))
    error = from_rpc_error(await session.failure())
    assert isinstance(error, OverloadedError)
    assert (error.reason, error.retry_after_s) == ("MESSAGE_TOO_LARGE", None)
    await fails(ring.stub.Generate(pb.GenerateRequest(text="x" * (1 << 17))))
    await ring.nothing_is_open()

    async def counted() -> float | None:
        return ring.metric("stream2llm_errors_total", reason="MESSAGE_TOO_LARGE")

    # A client may hear of its error before the router has counted it.
    await eventually(counted, lambda count: count == 2)
    ended = "session_ended session_id=streamed outcome=resource_exhausted reason=MESSAGE_TOO_LARGE"
    assert ended in caplog.text
    # Far above the limit gRPC refuses alone, and the client hears of it all the same.
    huge = ring.stub.Generate(pb.GenerateRequest(text="x" * (3 << 20)))
    final = FinalStatus(huge)
    await soon(huge.code())
    assert (await final.of(None)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_leaves_is_no_error(ring: Ring) -> None:
    session = await ring.opened("hello")
    await session.next("accepted")
    session.call.cancel()
    await ring.nothing_is_open()
    assert ring.metric("stream2llm_sessions_total", outcome="cancelled") == 1
    samples = [s for m in ring.router.registry.collect() for s in m.samples]
    assert not [s for s in samples if s.name == "stream2llm_errors_total" and s.value]


@pytest.mark.parametrize("rpc", ["GetModelInfo", "Generate", "StreamGenerate"])
async def test_bytes_that_are_no_message_are_counted_and_logged(
    ring: Ring, caplog: pytest.LogCaptureFixture, rpc: str
) -> None:
    caplog.set_level(logging.INFO)
    async with grpc.aio.insecure_channel(ring.address.grpc_address) as channel:
        call = channel.stream_stream(f"/stream2llm.v1.StreamingInferenceService/{rpc}")(timeout=30)
        await call.write(b"\xff\xff")
        await call.done_writing()
        await fails(call)
    assert ring.metric("stream2llm_errors_total", reason="NO_MESSAGE") == 1
    logged = refusals_in(caplog) or [r.getMessage() for r in caplog.records]  # a session's own end
    assert [line for line in logged if "reason=NO_MESSAGE" in line]
