"""The router's pure parts, one by one, where the ring would not show the detail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from router.context import ContextLimits, ContextLog
from router.documents import ContentDocument
from router.lengths import LengthLimits, limits_with
from router.outbox import Outbox
from router.placement import WorkerView, pick
from router.progress import ProgressTracker
from router.status import worker_error
from router.stop_strings import Matched, StopStringMatcher
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import (
    ERRORS_BY_STATUS,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.events import Accepted, Event, Progress, TokenDelta
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.api.requests import Document
from stream2llm.api.rpc_status import from_rpc_error, to_status
from stream2llm.api.sampling import SamplingParameters
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.settings.worker_spec import WorkerAddress
from tests.refusals import refused


def a_worker(worker_id: str, *, usable: bool = True, num_sessions: int = 0) -> WorkerView:
    role = "prefill" if worker_id.startswith("p") else "decode"
    return WorkerView(worker_id, role, usable, num_sessions)  # type: ignore[arg-type]


# -- placement --------------------------------------------------------------------


def test_the_least_loaded_worker_gets_the_session_and_the_id_breaks_ties() -> None:
    workers = [a_worker("p2", num_sessions=1), a_worker("p1", num_sessions=1), a_worker("d0")]
    assert pick(workers, "prefill") == "p1"
    assert pick([*workers, a_worker("p3")], "prefill") == "p3"


def test_a_suspect_worker_gets_nothing() -> None:
    assert pick([a_worker("p0", usable=False)], "prefill") is None
    assert pick([], "decode") is None


# -- context ----------------------------------------------------------------------


def a_log(*, max_model_len: int = 100, **limits: int) -> ContextLog:
    defaults = {"max_total_tokens": 100, "max_documents_per_event": 10, "max_documents": 50}
    length = LengthLimits(max_model_len)
    return ContextLog(as_tokens([]), ContextLimits(length, **defaults | limits))


def content(document_id: str, *token_ids: int) -> ContentDocument:
    return ContentDocument(document_id, as_tokens(token_ids))


def named(document_id: str) -> ContentDocument:
    return ContentDocument(document_id, None)


def test_an_update_may_name_a_document_that_an_earlier_one_left_out() -> None:
    log = a_log()
    log.append([content("a", 1, 2)])
    log.update([content("b", 3)])
    splice = log.update([named("a"), named("b"), named("a")])
    assert (splice.keep_tokens, splice.tail.tolist()) == (0, [1, 2, 3, 1, 2])
    assert splice.num_new_tokens == 0


def test_in_one_update_a_name_means_the_latest_content() -> None:
    log = a_log()
    log.append([content("a", 1)])
    splice = log.update([named("a"), content("a", 2), named("a")])
    assert (splice.keep_tokens, splice.tail.tolist()) == (1, [2, 2])


def test_two_documents_may_say_the_same() -> None:
    log = a_log()
    log.append([content("a", 1), content("b", 1), content("", 1), content("", 1)])
    assert log.sequence.tolist() == [1, 1, 1, 1]


def test_empty_documents_count_too() -> None:
    log = a_log(max_total_tokens=3)
    log.append([content(""), content("")])
    with pytest.raises(Stream2LLMError, match="sent 4 tokens over its life; at most 3"):
        log.append([content(""), content("")])


def test_a_list_that_names_a_long_document_often_is_refused_unread() -> None:
    log = a_log(max_total_tokens=60, max_model_len=60)
    log.append([content("a", *range(50))])
    with pytest.raises(InvalidRequestError, match="has 100 tokens"):
        log.update([named("a"), named("a")])


def test_a_prefix_of_bos_alone_is_an_empty_context() -> None:
    log = ContextLog(as_tokens([1]), ContextLimits(LengthLimits(100), 100, 10, 50))
    with pytest.raises(InvalidRequestError, match="context is empty"):
        log.seal(as_tokens([]), num_bos_tokens=1)


def test_a_long_document_id_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="257 characters; at most 256"):
        a_log().append([content("x" * 257, 1)])


# -- lengths ----------------------------------------------------------------------


def an_address(worker_id: str, num_kv_blocks: int) -> WorkerAddress:
    role = "prefill" if worker_id.startswith("p") else "decode"
    return WorkerAddress(worker_id, role, "", "", (), 1000, num_kv_blocks, block_size=16)  # type: ignore[arg-type]


def test_without_workers_the_model_alone_bounds() -> None:
    limits = limits_with(1000, [])
    assert limits == LengthLimits(1000)
    assert (limits.max_prompt_tokens, limits.max_total_tokens) == (999, 1000)


def test_of_each_role_the_smallest_worker_counts() -> None:
    workers = [an_address(*w) for w in (("p0", 9), ("p1", 5), ("d0", 7), ("d1", 8))]
    assert limits_with(1000, workers) == LengthLimits(1000, 5 * 16, 7 * 16)


@pytest.mark.parametrize(
    ("limits", "longest", "message"),
    [
        (LengthLimits(100, 400, 400), 99, r"with one for the answer .* 100 \(max_model_len\)"),
        (LengthLimits(100, 80, 400), 80, "KV memory of the smallest prefill worker .* most 80"),
        (LengthLimits(100, 99, 100), 99, r"the model takes at most 100 \(max_model_len\)"),
        (LengthLimits(100, 400, 64), 63, "one for the answer .* decode worker holds at most 64"),
    ],
)
def test_the_tightest_limit_is_named(limits: LengthLimits, longest: int, message: str) -> None:
    limits.check_prompt(longest)
    with refused(f"has {longest + 1} tokens; .*{message}", reason="CONTEXT_TOO_LONG"):
        limits.check_prompt(longest + 1)
    assert limits.max_prompt_tokens == longest


def test_an_answer_of_one_token_needs_no_decode_worker() -> None:
    limits = LengthLimits(100, 80, 64)
    assert limits.for_answer(1).max_prompt_tokens == 80
    assert limits.for_answer(2) == limits.for_answer(None) == limits
    assert limits.max_total_tokens == 64


# -- progress ---------------------------------------------------------------------


def test_a_splice_lowers_what_is_prefilled_before_the_worker_says_so() -> None:
    tracker = ProgressTracker(100)
    tracker.splice(1, 0, 50)
    tracker.report(PrefillProgress(revision=1, prefilled_tokens=49))
    tracker.splice(2, 10, 30)
    assert tracker.figures() == Progress(2, 30, 10, credit_tokens=100 - 19)
    tracker.report(PrefillProgress(revision=1, prefilled_tokens=49))  # it had not heard yet
    assert tracker.figures().prefilled_tokens == 10


def test_a_preemption_does_not_take_credit_back() -> None:
    tracker = ProgressTracker(10)
    tracker.splice(1, 0, 50)
    assert not tracker.has_credit
    tracker.report(PrefillProgress(revision=1, prefilled_tokens=49))
    tracker.report(PrefillProgress(revision=1, prefilled_tokens=0))
    assert tracker.has_credit
    assert tracker.figures().prefilled_tokens == 0


# -- stop strings -----------------------------------------------------------------


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopStringMatcher(["</end>", "STOP"])
    assert matcher.push("a </en") == Matched("a ")
    assert matcher.push("try") == Matched("</entry")
    assert matcher.push(" ST") == Matched(" ")
    assert matcher.push("OPq") == Matched("", "STOP")


def test_of_strings_complete_at_once_the_longest_wins() -> None:
    assert StopStringMatcher(["b", "ab"]).push("xab") == Matched("x", "ab")


# -- outbox -----------------------------------------------------------------------


async def test_progress_is_replaced_and_never_overtakes() -> None:
    outbox, sent = Outbox(), []

    async def send(event: Event) -> None:
        sent.append(event)

    await outbox.put(Accepted("s", "m", 1))
    outbox.put_progress(Progress(1))
    outbox.put_progress(Progress(2))
    await outbox.put(Accepted("last", "m", 1))
    outbox.close()
    await outbox.drain(send)
    assert sent == [Accepted("s", "m", 1), Progress(2), Accepted("last", "m", 1)]


async def test_what_was_put_is_sent_though_the_wait_for_room_is_cancelled() -> None:
    outbox, sent = Outbox(), []

    async def fill() -> None:
        for number in range(1000):
            await outbox.put(Accepted(str(number), "m", 1))
            num_put.append(number)

    num_put: list[int] = []
    filling = asyncio.create_task(fill())
    await asyncio.wait({filling}, timeout=0.0)
    await asyncio.sleep(0)
    filling.cancel()
    await asyncio.wait({filling})
    outbox.close()

    async def send(event: Event) -> None:
        assert isinstance(event, Accepted)
        sent.append(int(event.session_id))

    await outbox.drain(send)
    assert 0 < len(num_put) < 1000
    # The last one was waiting for room when it was cancelled.
    assert sent == [*num_put, len(num_put)]


async def test_tokens_that_wait_for_a_slow_client_are_one_message() -> None:
    outbox, sent = Outbox(), []
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def send(event: Event) -> None:
        sent.append(event)
        begun.set()
        await may_go_on.wait()

    draining = asyncio.create_task(outbox.drain(send))
    await outbox.put(TokenDelta("a", (1,)))
    await begun.wait()
    for delta in (
        TokenDelta("b", (2,)),
        TokenDelta("", (3, 4)),
        TokenDelta("c", (5,), index=1),
        TokenDelta("d", (6,), index=1),
        TokenDelta("e", (7,)),
    ):
        await outbox.put(delta)
    outbox.put_progress(Progress(1))
    await outbox.put(TokenDelta("f", (8,)))
    outbox.close()
    may_go_on.set()
    await draining
    assert sent == [
        TokenDelta("a", (1,)),
        TokenDelta("b", (2, 3, 4)),
        TokenDelta("cd", (5, 6), index=1),
        TokenDelta("e", (7,)),
        Progress(1),
        TokenDelta("f", (8,)),
    ]


async def test_a_stopped_outbox_sends_nothing_more() -> None:
    outbox, sent = Outbox(), []
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def send(event: Event) -> None:
        sent.append(event)
        begun.set()
        await may_go_on.wait()

    draining = asyncio.create_task(outbox.drain(send))
    await outbox.put(Progress(1))
    await begun.wait()
    await outbox.put(Progress(2))
    outbox.stop()
    may_go_on.set()
    await draining
    assert sent == [Progress(1)]


# -- tokenizer --------------------------------------------------------------------


async def test_long_text_is_tokenized_off_the_event_loop(tiny_model: Path) -> None:
    text = TextInput(ModelTokenizer(str(tiny_model)), max_model_len=1_000_000)
    document = Document("the quick brown fox " * 20_000)
    num_turns = 0
    async with asyncio.TaskGroup() as group:
        work = group.create_task(text.documents([document], "append", 1_000_000))
        while not work.done():
            num_turns += 1
            await asyncio.sleep(0)
    # Some hundred thousand if the tokenizer lets go of the interpreter; two or three if not.
    assert num_turns > 100
    (tokenized,) = work.result()
    assert np.array_equal(tokenized.tokens, text.tokenizer.encode("the quick brown fox " * 20_000))
    text.close()


def test_a_session_sends_no_more_documents_than_it_may() -> None:
    log = ContextLog(as_tokens([1]), ContextLimits(LengthLimits(100), 100, 10, max_documents=3))
    empty = ContentDocument("", as_tokens([]))
    log.append([empty, empty])
    log.update([empty])
    with pytest.raises(OverloadedError, match="4 documents over its life; at most 3"):
        log.append([empty])
    log.seal(as_tokens([2]), 0)
    assert log.sequence.tolist() == [1, 2]


def test_a_broken_model_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match=r"config.json: vocab_size is missing"):
        ModelTokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InvalidRequestError, match=r"config.json: not JSON"):
        ModelTokenizer(str(tmp_path))


# -- wire and statuses ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 2.5}, "temperature is 2.5; it must be between 0 and 2"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop_strings": ("",)}, "stop_strings is ''"),
        ({"stop_strings": ("x",) * 17}, "has 17 entries; at most 16"),
        ({"stop_token_ids": (1,) * 65}, "has 65 entries; at most 64"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        (
            {"repetition_penalty": 1e-40},
            "repetition_penalty is 1e-40; it must be between 0.01 and 2",
        ),
        ({"logprobs": 21}, "logprobs is 21; it must be between 0 and 20"),
        ({"min_tokens": -1}, "min_tokens is -1; it must be at least 0"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens is 3; it must be at most max_tokens, 2"),
        ({"min_p": float("nan")}, "min_p is nan; it must be between 0 and 1"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "has 301 entries; at most 300"),
        ({"logit_bias": {100: 1.0}}, "logit_bias is 100; it must be below the vocabulary size 100"),
        ({"bad_words": ("x",) * 129}, "has 129 entries; at most 128"),
        ({"bad_words": ((1,) * 1025,)}, "has 1025 tokens; at most 1024"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0; it must be at least 1"),
    ],
)
def test_bad_sampling_is_named_with_its_limit(change: dict[str, object], message: str) -> None:
    with refused(message, field=f"sampling.{next(iter(change))}"):
        SamplingParameters(**change).validate(100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"logit_bias": {7: 1.0, 8: float("nan")}}, "logit_bias[8]", "is nan; it must be between"),
        ({"logit_bias": {7: -101.0}}, "logit_bias[7]", "must be between -100 and 100"),
        ({"bad_words": ("x", "")}, "bad_words[1]", "is empty"),
        ({"bad_words": ((),)}, "bad_words[0]", "is empty"),
        ({"bad_words": ("x" * 257,)}, "bad_words[0]", "at most 256 characters long"),
        ({"bad_words": ("x", (1, 100))}, "bad_words[1]", "is 100; it must be below the vocabulary"),
    ],
)
def test_a_bad_entry_of_sampling_is_named_by_its_place(
    change: dict[str, object], field: str, message: str
) -> None:
    with refused(message, field=f"sampling.{field}", reason="BAD_SAMPLING"):
        SamplingParameters(**change).validate(100)  # type: ignore[arg-type]


class FakeRpcError:
    """A status as grpc.aio.AioRpcError has it."""

    def __init__(self, status: Any) -> None:
        self._status = status

    def code(self) -> object:
        return self._status.code

    def details(self) -> str:
        return self._status.details

    def trailing_metadata(self) -> object:
        return self._status.trailing_metadata


@pytest.mark.parametrize("kind", ERRORS_BY_STATUS.values())
def test_every_error_survives_the_wire(kind: type[Stream2LLMError]) -> None:
    error = kind("what happened", reason="WHY", field="a.b", retry_after_s=2.5)
    back = from_rpc_error(FakeRpcError(to_status(error)))
    assert type(back) is kind
    assert (back.message, back.reason, back.field, back.retry_after_s) == (
        "what happened",
        "WHY",
        "a.b",
        2.5,
    )


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "Socket closed", UnavailableError),
        ("CANCELLED", "", UnavailableError),
        ("UNKNOWN", "Stream removed", UnavailableError),
        ("INTERNAL", "Received RST_STREAM with error code 2", UnavailableError),
        ("UNKNOWN", "Unexpected <class 'ValueError'>: x", InternalError),
        ("INTERNAL", "Exception deserializing request!", InternalError),
        ("UNIMPLEMENTED", "Method not found!", InternalError),
    ],
)
def test_a_status_that_grpc_made_is_a_loss_or_a_bug(
    code: str, details: str, kind: type[Stream2LLMError]
) -> None:
    status = SimpleNamespace(code=grpc.StatusCode[code], details=details, trailing_metadata=())
    error = worker_error(FakeRpcError(status), "prefill-0")
    assert type(error) is kind
    assert "prefill-0" in error.message
    assert (error.reason == "WORKER_LOST") == (kind is UnavailableError)
