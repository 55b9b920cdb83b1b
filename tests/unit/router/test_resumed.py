"""Sessions that a client brings from a router that was lost: a real router, real gRPC."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.outbox import Outbox
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from tests.router_ring import Answered, Conversation, Ring
from tests.tiny_model import EOS

NUM_TOKENS = 7
GREEDY = pb.SamplingParameters(temperature=0, max_tokens=NUM_TOKENS, logprobs=1, ignore_eos=True)
WORDS = ["begin", "one two", "three"]


@pytest.fixture(autouse=True)
def _a_delta_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are cut between deltas here; what waits for a client would be one."""
    monkeypatch.setattr(Outbox, "_deltas", lambda _self, first: [first])


async def send_context(session: Conversation, sampling: Any, **fields: Any) -> None:
    await session.open(WORDS[0], sampling=sampling, **fields)
    await session.append(*WORDS[1:])
    await session.seal()


async def answer(ring: Ring, sampling: Any, **fields: Any) -> Answered:
    session = ring.converse()
    await send_context(session, sampling, **fields)
    return await session.answer()


def brought(deltas: list[Any], restarts: int = 1) -> Any:
    """What a client has that has received these deltas."""
    return pb.ResumedSession(
        token_ids=[token for delta in deltas for token in delta.token_ids],
        num_chars=len("".join(delta.text for delta in deltas)),
        restarts=restarts,
    )


@dataclass
class Case:
    """How an answer ends, and what its text is."""

    name: str
    # Texts of the tokens; None: the fake model's own answer.
    texts: list[str] | None = None
    ends: bool = True
    sampling: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("max_tokens", sampling={"max_tokens": NUM_TOKENS, "ignore_eos": True}),
    Case("end of sequence", ["on", "e ", "tw", "o "]),
    Case("characters of several tokens", ["a", "€", "é", "😀"]),
    Case("a character that is cut", ["a", "€"], sampling={"max_tokens": 3}),
    Case("stop string over tokens", ["on", "e ", "tw", "o "], sampling={"stop_strings": ["e tw"]}),
    Case("almost a stop string", ["on", "e ", "tw", "o "], sampling={"stop_strings": ["e twice"]}),
    Case("held back at the end", ["on", "e "], sampling={"stop_strings": ["e twice"]}),
    Case(
        "stop string that is shown",
        ["on", "e ", "tw", "o "],
        sampling={"stop_strings": ["e tw"], "include_stop_string": True},
    ),
    Case(
        "stop string behind min_tokens",
        ["on", "e on", "e tw", "on", "e "],
        sampling={"stop_strings": ["one"], "min_tokens": 3},
    ),
    Case(
        "stop token that is shown",
        ["a", "b", "c", "d"],
        sampling={"stop_token_ids": [70], "include_stop_string": True},
    ),
    Case("special tokens that are shown", ["a", "b"], sampling={"skip_special_tokens": False}),
    Case("stop token", ["a", "b", "c", "d"], sampling={"stop_token_ids": [70], "ignore_eos": True}),
]


@pytest.mark.parametrize("tokens_per_step", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_answer_goes_on_behind_any_part_of_it(
    make_ring: Any, case: Case, tokens_per_step: int
) -> None:
    ring = await make_ring()
    ring.decode.tokens_per_step = tokens_per_step
    if case.texts is not None:
        ends = 70 if "stop_token_ids" in case.sampling else EOS
        ring.brain.script = [token for text in case.texts for token in ring.encode(text)] + [ends]
    sampling = pb.SamplingParameters(temperature=0, logprobs=1, **case.sampling)
    whole = await answer(ring, sampling)
    for num_received in range(len(whole.deltas) + 1):
        received = whole.deltas[:num_received]
        rest = await answer(ring, sampling, resumed=brought(received))
        check_joined(whole, received, rest)


def check_joined(whole: Answered, received: list[Any], rest: Answered) -> None:
    """Both parts together are the whole, token by token and text by text."""
    deltas = [*received, *rest.deltas]
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    logprobs = [each.sampled for delta in deltas for each in delta.logprobs]
    assert [each.token_id for each in logprobs] == whole.token_ids
    mine, other = rest.finished, whole.finished
    assert (mine.reason, mine.stop_string) == (other.reason, other.stop_string)
    assert mine.HasField("stop_token_id") == other.HasField("stop_token_id")
    assert mine.stop_token_id == other.stop_token_id
    assert mine.usage.prompt_tokens == other.usage.prompt_tokens
    assert mine.usage.completion_tokens == other.usage.completion_tokens
    assert (other.restarts, mine.restarts) == (0, 1)


async def test_text_that_the_client_lacks_is_sent_with_the_next_tokens(ring: Ring) -> None:
    whole = await answer(ring, GREEDY)
    for num_received in (3, NUM_TOKENS):
        resumed = brought(whole.deltas[:num_received])
        resumed.num_chars = 1
        rest = await answer(ring, GREEDY, resumed=resumed)
        assert rest.text == whole.text[1:]
        assert rest.token_ids == whole.token_ids[num_received:]


async def test_workers_get_prompt_and_answer_as_one_sequence(ring: Ring) -> None:
    """So that penalties, max_tokens and the KV of the answer so far are right there."""
    whole = await answer(ring, GREEDY)
    prompt = [token for text in WORDS for token in ring.encode(text)]
    await answer(ring, GREEDY, resumed=brought(whole.deltas[:3]))
    assert ring.record.sequence == prompt + whole.token_ids[:3]
    assert (ring.record.answer_tokens, ring.record.hand_over) == (3, True)
    request = ring.decode.requests[-1]
    assert ring.decode.prompts[-1] == prompt + whole.token_ids[:4]
    assert (request.answer_tokens, request.sampling.max_tokens) == (4, NUM_TOKENS)
    await answer(ring, GREEDY, resumed=brought(whole.deltas[:-1]))
    assert ring.record.hand_over is False


async def test_an_answer_that_has_ended_is_computed_by_no_worker(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = await answer(ring, GREEDY)
    rest = await answer(ring, GREEDY, resumed=brought(whole.deltas))
    assert (rest.deltas, rest.finished.reason) == ([], pb.FINISH_REASON_LENGTH)
    assert not ring.record.sealed.is_set()
    await ring.nothing_is_open()
    ended = [line for line in caplog.messages if line.startswith("session_ended")]
    assert all(f" answer_tokens={NUM_TOKENS} " in line for line in ended)
    assert len(ended) == 2


async def test_progress_and_figures_say_that_it_was_resumed(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ttft = "stream2llm_session_ttft_seconds_count"
    whole = await answer(ring, GREEDY)
    assert ring.metric(ttft, input_mode="append") == 1
    session = ring.converse()
    await send_context(session, GREEDY, session_id="mine", resumed=brought(whole.deltas[:2], 4))
    assert (await session.next("progress")).restarts == 4
    assert (await session.answer()).finished.restarts == 4
    assert ring.metric("stream2llm_session_restarts_total", cause="router_lost") == 1
    assert ring.metric("stream2llm_recovery_seconds_count", cause="router_lost") == 1
    assert ring.metric(ttft, input_mode="append") == 1  # its first token came from another router
    assert (
        "session_resumed session_id=mine tenant=default answer_tokens=2 restarts=4" in caplog.text
    )


async def test_a_session_without_a_token_yet_begins_its_answer_here(ring: Ring) -> None:
    rest = await answer(ring, GREEDY, resumed=pb.ResumedSession(restarts=1))
    assert rest.finished.restarts == 1
    assert len(rest.token_ids) == NUM_TOKENS
    assert ring.metric("stream2llm_session_ttft_seconds_count", input_mode="append") == 1


TOKENS = "open.resumed.token_ids"
REFUSED = [
    ({"token_ids": [512]}, "BAD_TOKEN_ID", TOKENS, "token id 512"),
    ({"token_ids": [70] * 8}, "BAD_RESUMED", TOKENS, "has 8 tokens; the answer has at most 7"),
    ({"token_ids": [70], "num_chars": 9}, "BAD_RESUMED", "open.resumed.num_chars", "is 9"),
    ({"restarts": 10_001}, "BAD_RESUMED", "open.resumed.restarts", "at most 10000"),
]


@pytest.mark.parametrize(("fields", "reason", "name", "message"), REFUSED)
async def test_what_no_client_can_have_is_refused_by_name(
    ring: Ring, fields: Any, reason: str, name: str, message: str
) -> None:
    session = ring.converse()
    await send_context(session, GREEDY, resumed=pb.ResumedSession(**fields))
    error = from_rpc_error(await session.failure())
    assert (error.reason, error.field) == (reason, name)
    assert message in error.message


async def test_tokens_behind_the_end_of_the_answer_are_refused(ring: Ring) -> None:
    session = ring.converse()
    sampling = pb.SamplingParameters(max_tokens=NUM_TOKENS)
    await send_context(session, sampling, resumed=pb.ResumedSession(token_ids=[EOS, 70]))
    error = from_rpc_error(await session.failure())
    assert "has tokens behind the end of the answer" in error.message


async def test_an_answer_that_fits_into_no_prefill_worker_is_refused(make_ring: Any) -> None:
    ring = await make_ring(prefill_blocks=2)
    session = ring.converse()
    sampling = pb.SamplingParameters(max_tokens=40, ignore_eos=True)
    await send_context(session, sampling, resumed=pb.ResumedSession(token_ids=[70] * 30))
    error = from_rpc_error(await session.failure())
    assert (error.reason, error.field) == ("CONTEXT_TOO_LONG", TOKENS)
    assert "too many to go on" in error.message
