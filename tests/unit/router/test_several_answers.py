"""Sessions with several answers to their one prompt: a real router, fake workers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from stream2llm.api.errors import OverloadedError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.fake_workers import FakeWorker
from tests.polling import eventually
from tests.router_ring import Conversation, Ring, a_ring, reason_of, soon

pytestmark = pytest.mark.unit

NUM_TOKENS = 7
SEED = 5
WORDS = ["begin", "one two", "three"]


def sampling(num_answers: int, **fields: Any) -> Any:
    asked = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": SEED, **fields}
    return pb.SamplingParameters(n=num_answers, **asked)


@pytest.fixture
def seeded(ring: Ring) -> Ring:
    ring.brain.heeds_seeds = True
    return ring


async def begin(ring: Ring, num_answers: int, **fields: Any) -> Conversation:
    session = ring.converse()
    asked = fields.pop("sampling", sampling(num_answers))
    await session.open(WORDS[0], sampling=asked, session_id="mine", **fields)
    await session.append(*WORDS[1:])
    await session.seal()
    return session


def prompt_of(ring: Ring) -> list[int]:
    return [token for text in WORDS for token in ring.encode(text)]


def deltas_of(messages: list[Any]) -> list[Any]:
    return [m.delta for m in messages if m.WhichOneof("event") == "delta"]


def tokens_of(messages: list[Any], index: int) -> list[int]:
    return [t for d in deltas_of(messages) if d.index == index for t in d.token_ids]


def ends_of(messages: list[Any]) -> dict[int, Any]:
    ends = [m.finished for m in messages if m.WhichOneof("event") == "finished"]
    by_index = {end.index: end for end in ends}
    assert len(by_index) == len(ends), "an answer ends once"
    return by_index


def check(ring: Ring, messages: list[Any], num_answers: int) -> None:
    """Each answer is that of a session of its own with its seed."""
    expected = [ring.brain.answer(prompt_of(ring), NUM_TOKENS, SEED + i) for i in range(3)]
    for index in range(num_answers):
        assert tokens_of(messages, index) == expected[index]
        text = "".join(d.text for d in deltas_of(messages) if d.index == index)
        assert text == ring.decode_text(expected[index])
    assert sorted(ends_of(messages)) == list(range(num_answers))
    assert messages[-1].WhichOneof("event") == "finished"


async def test_each_answer_is_its_own_and_the_session_is_one(
    seeded: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    messages = await (await begin(seeded, 3)).rest()
    check(seeded, messages, 3)
    usages = [end.usage for _, end in sorted(ends_of(messages).items())]
    assert [usage.prompt_tokens for usage in usages] == [len(prompt_of(seeded)), 0, 0]
    assert [usage.completion_tokens for usage in usages] == [NUM_TOKENS] * 3
    assert seeded.metric("stream2llm_sessions_total", outcome="ok") == 1
    first_tokens = "stream2llm_time_to_first_token_seconds_count"
    assert seeded.metric(first_tokens, input_mode="append") == 1
    records = seeded.prefill.records
    assert {record.open.session_id for record in records} == {"mine", "mine-1", "mine-2"}
    assert all(record.sequence == prompt_of(seeded) for record in records)
    assert all(record.open.sampling.n == 1 for record in records)
    ends = [line for line in caplog.messages if "_ended" in line]
    assert sorted(line.split(" ")[0] for line in ends) == ["answer_ended"] * 2 + ["session_ended"]
    assert ends[-1].startswith("session_ended")


async def test_a_complete_prompt_has_several_answers(seeded: Ring) -> None:
    request = pb.GenerateRequest(text="once", sampling=sampling(2))
    messages = [message async for message in seeded.stub.Generate(request)]
    prompt = seeded.encode("once")
    for index in range(2):
        expected = seeded.brain.answer(prompt, NUM_TOKENS, SEED + index)
        assert tokens_of(messages, index) == expected
    assert sorted(ends_of(messages)) == [0, 1]


async def test_stop_strings_and_lengths_end_each_answer_for_itself(seeded: Ring) -> None:
    second = seeded.brain.answer(prompt_of(seeded), NUM_TOKENS, SEED + 1)
    asked = sampling(2, stop_token_ids=[second[2]])
    messages = await (await begin(seeded, 2, sampling=asked)).rest()
    ends = ends_of(messages)
    assert tokens_of(messages, 1) == second[:3]
    assert ends[1].reason == pb.FINISH_REASON_STOP_TOKEN
    assert ends[0].reason == pb.FINISH_REASON_LENGTH


async def test_the_others_begin_with_the_first_token_at_the_same_workers(
    tiny_model: Path,
) -> None:
    async with a_ring(tiny_model, num_prefill=3, num_decode=3) as ring:
        ring.brain.heeds_seeds = True
        prefills = [w.prefill for w in ring.workers if w.role == "prefill"]
        for prefill in prefills:
            prefill.may_sample.clear()
        session = await begin(ring, 3)
        while not (having := [each for each in prefills if each.records]):
            await session.next("progress")
        (prefill,) = having
        await soon(prefill.records[0].sealed.wait())
        assert len(prefill.records) == 1
        for each in prefills:
            each.may_sample.set()
        check(ring, await session.rest(), 3)
        assert [len(each.records) for each in having] == [3]
        decodes = [len(w.decode.requests) for w in ring.workers if w.role == "decode"]
        assert sorted(decodes) == [0, 0, 3]


async def test_the_failure_of_one_ends_all(seeded: Ring) -> None:
    seeded.prefill.may_sample.clear()
    session = await begin(seeded, 2)
    await soon(seeded.prefill.session_came.wait())
    await soon(seeded.record.sealed.wait())
    seeded.prefill.failures["open"] = OverloadedError("no room", reason="FULL_OF_IT")
    seeded.decode.hold_after_steps = 1
    seeded.prefill.may_sample.set()
    assert reason_of(await session.failure()) == "FULL_OF_IT"
    await seeded.nothing_is_open()


async def test_a_client_that_leaves_ends_all(seeded: Ring) -> None:
    seeded.decode.hold_after_steps = 1
    session = await begin(seeded, 3)
    seen = set()
    while len(seen) < 3:
        seen.add((await session.next("delta")).index)
    session.call.cancel()
    await seeded.nothing_is_open()
    for record in seeded.prefill.records:
        await soon(record.ended.wait())


async def test_a_lost_decode_worker_costs_each_answer_a_restart(tiny_model: Path) -> None:
    recovery = RecoveryOptions()
    async with a_ring(tiny_model, num_decode=2, recovery=recovery) as ring:
        ring.brain.heeds_seeds = True
        decodes = [w for w in ring.workers if w.role == "decode"]
        for worker in decodes:
            worker.decode.hold_after_steps = 2
        session = await begin(ring, 2)
        messages: list[Any] = []
        while not all(tokens_of(messages, index) for index in range(2)):
            messages.append(await soon(session.call.read()))

        async def with_both() -> list[FakeWorker]:
            return [worker for worker in decodes if len(worker.decode.requests) == 2]

        (lost,) = await eventually(with_both, bool)
        for worker in decodes:
            worker.decode.hold_after_steps = None
        await lost.kill()
        messages += await session.rest()
        check(ring, messages, 2)
        assert [end.restarts for _, end in sorted(ends_of(messages).items())] == [1, 1]


# -- brought from another router ----------------------------------------------------------


def brought(messages: list[Any]) -> Any:
    """What a client has that has received these messages."""
    answers = [
        pb.ResumedAnswer(
            token_ids=tokens_of(messages, index),
            num_chars=len("".join(d.text for d in deltas_of(messages) if d.index == index)),
        )
        for index in range(3)
    ]
    first, *others = answers
    return pb.ResumedSession(
        token_ids=first.token_ids, num_chars=first.num_chars, restarts=1, others=others
    )


@pytest.mark.parametrize("num_received", [0, 1, 2, 6, 12, 3 * NUM_TOKENS])
async def test_answers_go_on_where_the_client_has_them(seeded: Ring, num_received: int) -> None:
    deltas = [m for m in await (await begin(seeded, 3)).rest() if m.WhichOneof("event") == "delta"][
        :num_received
    ]
    session = await begin(seeded, 3, resumed=brought(deltas))
    rest = await session.rest()
    check(seeded, [*deltas, *rest], 3)
    assert all(end.restarts == 1 for end in ends_of(rest).values())
    total = sum(end.usage.completion_tokens for end in ends_of(rest).values())
    assert total == 3 * NUM_TOKENS


async def failure_of(session: Conversation) -> tuple[str, str | None]:
    found = from_rpc_error(await session.failure())
    assert found is not None
    return found.reason, found.field


OTHERS = "open.resumed.others"


@pytest.mark.parametrize(
    ("others", "field"),
    [
        ([{}, {}], OTHERS),
        ([{"token_ids": [3] * (NUM_TOKENS + 1)}], f"{OTHERS}[0].token_ids"),
        ([{"token_ids": [3], "num_chars": 100}], f"{OTHERS}[0].num_chars"),
    ],
)
async def test_what_no_client_can_have_is_refused(
    ring: Ring, others: list[Any], field: str
) -> None:
    resumed = pb.ResumedSession(others=[pb.ResumedAnswer(**each) for each in others])
    session = await begin(ring, 2, resumed=resumed)
    assert await failure_of(session) == ("BAD_RESUMED", field)


# -- limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (pb.SamplingParameters(n=0), "sampling.n"),
        (pb.SamplingParameters(n=17), "sampling.n"),
        (pb.SamplingParameters(n=2, seed=2**63 - 1), "sampling.seed"),
    ],
)
async def test_how_many_there_may_be(ring: Ring, asked: Any, field: str) -> None:
    session = ring.converse()
    await session.open("begin", sampling=asked)
    error = await session.failure()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = from_rpc_error(error)
    assert found is not None
    assert (found.reason, found.field) == ("BAD_SAMPLING", field)
