"""What a replay sends and when, and what it makes of metrics pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.errors import OverloadedError, Stream2LLMError, UnavailableError
from stream2llm.workload.records import Sample
from stream2llm.workload.replay.display import progress_line
from stream2llm.workload.replay.driver import Snapshot
from stream2llm.workload.replay.metrics import counters_of, page_of, policy_of, sample_of
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.replay.scrape import metrics_url
from stream2llm.workload.replay.session import error_code
from stream2llm.workload.traces.format import Content, Document, Event, SharedDocument
from stream2llm.workload.traces.read import TraceReader
from stream2llm.workload.traces.text import TextMaker
from stream2llm.workload.traces.write import write_trace
from tests.runs import PREFILL_PAGE as PAGE
from tests.traces import a_header, a_session

MAKER = TextMaker()


def planned(
    session: Any, shared: dict[str, Document] | None = None, **options: Any
) -> PlannedSession:
    return Planner(MAKER, **options).planned(session, shared or {})


# -- plans ------------------------------------------------------------------------------


def test_load_moves_arrivals_and_leaves_what_is_within_a_session() -> None:
    plan = planned(a_session(arrival_s=10.0), load_scale=2.0)
    assert plan.due_s == 5.0
    assert [step.due_s for step in plan.steps] == [5.5, 6.5]
    assert plan.seal_due_s == 6.5


def test_an_update_names_what_was_sent_before_by_id_alone() -> None:
    append, update = planned(a_session()).steps
    assert (append.is_update, update.is_update) == (False, True)
    assert [document.content is None for document in append.documents] == [False]
    listed = [(document.id, document.content) for document in update.documents]
    assert listed == [("b", "Some text."), ("a", None)]


def test_an_append_sends_its_documents_again() -> None:
    events = (Event(0, "append", ("a",)), Event(1, "append", ("a",)), Event(1, "seal"))
    first, second = planned(a_session(events=events)).steps
    assert first.documents == second.documents
    assert first.documents[0].content


def test_sessions_share_the_instruction_and_shared_documents_and_nothing_else() -> None:
    shared = {"s": Document("s", tokens=50)}
    changes = {
        "prefix": Content(tokens=20),
        "events": (Event(0, "append", ("s", "a")), Event(0, "seal")),
    }
    planner = Planner(MAKER)
    one, other = (planner.planned(a_session(name, **changes), shared) for name in ("q0", "q1"))
    assert one.prefix == other.prefix
    assert one.steps[0].documents[0] == other.steps[0].documents[0]
    assert one.steps[0].documents[1] != other.steps[0].documents[1]
    assert one.suffix != other.suffix


def test_equal_seeds_give_equal_text_and_others_other_text() -> None:
    assert planned(a_session()) == planned(a_session())
    one, other = planned(a_session(), text_seed=1), planned(a_session(), text_seed=2)
    assert one.suffix != other.suffix
    assert one.prefix == other.prefix == "Answer."  # the trace's own text


def test_a_plan_is_read_from_a_file_with_shared_documents(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    session = a_session(documents=(), events=(Event(0, "append", ("s",)), Event(0, "seal")))
    write_trace(path, a_header(), [SharedDocument(Document("s", "Shared.", 2)), session])
    with TraceReader(path) as reader:
        (plan,) = Planner(MAKER).plan(reader, reader.shared)
    assert plan.steps[0].documents[0].content == "Shared."


# -- errors and progress ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("x"), "UNAVAILABLE"),
        (UnavailableError("x", reason="WORKER_LOST"), "UNAVAILABLE: WORKER_LOST"),
        (OverloadedError("x"), "RESOURCE_EXHAUSTED: OVERLOADED"),
        (Stream2LLMError("x", reason="CANCELLED"), "CANCELLED"),
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (KeyError("secret text"), "INTERNAL: KeyError"),
    ],
)
def test_failures_are_counted_by_few_words(error: Exception, code: str) -> None:
    assert error_code(error) == code


def test_the_progress_line() -> None:
    snapshot = Snapshot(12.4, num_planned=4322, num_begun=1500, num_answered=300, num_failed=2)
    expected = "12 s: 1,198 open, 300 answered, 2 failed, of 4,322 sessions"
    assert progress_line(snapshot) == expected


# -- metrics --------------------------------------------------------------------------------

DECODE_PAGE = """\
stream2llm_kv_blocks{role="decode"} 400.0
stream2llm_kv_blocks_held{role="decode"} 400.0
stream2llm_preemptions_total{action="recompute",policy="vllm",role="decode"} 9.0
"""


def test_a_sample_sums_prefill_workers() -> None:
    pages = [page_of(PAGE), page_of(PAGE), page_of(DECODE_PAGE)]
    assert sample_of(2.5, pages) == Sample(2.5, 0.25, num_sessions=14, num_with_work=4)
    assert sample_of(2.5, [page_of(DECODE_PAGE)]) is None


def test_counters_have_the_names_of_records() -> None:
    page = page_of(PAGE)
    assert policy_of(page) == "lcas"
    assert counters_of(page) == {
        "preemptions_swap": 5.0,
        "preemptions_recompute": 2.0,
        "recomputed_tokens": 64.0,
        "swap_failures": 0.0,
    }
    assert counters_of(page_of(DECODE_PAGE)) == {}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("h:1", "http://h:1/metrics"),
        ("http://h:1", "http://h:1/metrics"),
        ("http://h:1/", "http://h:1/metrics"),
        ("h:1/sd", "http://h:1/sd"),
        ("https://h/x/metrics", "https://h/x/metrics"),
    ],
)
def test_addresses_stand_for_their_metrics(given: str, url: str) -> None:
    assert metrics_url(given) == url
