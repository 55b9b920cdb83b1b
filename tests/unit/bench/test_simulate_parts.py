"""Parts of the simulator: what a trace asks, what steps take, how decode shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cost_profiles.load import shipped_profiles
from cost_profiles.types import CostProfile
from experiments.paper.published import NOT_STREAMED, published, settings
from stream2llm.cli.simulate import app
from stream2llm.simulator.decode import Answer, DecodeSettings, DecodeWorker, HandoverCounters, Link
from stream2llm.simulator.steps import StepLaw, law_of, worst_error
from stream2llm.simulator.work import (
    Change,
    Task,
    in_order,
    invalidated_tokens,
    not_streamed,
    peak_tokens,
    task,
)
from stream2llm.workload.traces.format import Content, Document, Event, Session
from stream2llm.workload.traces.write import write_trace
from tests.traces import a_header

LAW = StepLaw(fixed_s=0.01, per_token_s=0.001, per_pair_s=0.0)
DOCUMENTS = tuple(Document(name, tokens=10 * number) for number, name in enumerate("abcd", 1))


def a_session(*events: Event) -> Session:
    return Session(
        id="q",
        arrival_s=5.0,
        prefix=Content(tokens=7),
        suffix=Content(tokens=3),
        documents=DOCUMENTS,
        events=events,
    )


def the_task(*events: Event) -> Task:
    session = a_session(*events)
    return task(session, session.document_table({}))


def test_an_append_keeps_all_and_an_update_the_common_prefix() -> None:
    found = the_task(
        Event(1.0, "append", ("a",)),
        Event(2.0, "append", ("b", "c")),
        Event(3.0, "update", ("a", "c", "d")),
        Event(3.5, "seal"),
    )
    assert found.changes == (
        Change(5.0, 0, 7, seals=False),
        Change(6.0, 7, 17, seals=False),
        Change(7.0, 17, 67, seals=False),
        Change(8.0, 17, 7 + 10 + 30 + 40, seals=False, is_update=True),
        Change(8.5, 87, 90, seals=True),
    )
    assert invalidated_tokens(found) == 50
    assert (found.opened_s, found.sealed_s, found.num_tokens) == (5.0, 8.5, 90)


def test_a_document_that_moves_is_computed_again() -> None:
    found = the_task(
        Event(1.0, "update", ("a", "b")), Event(2.0, "update", ("b", "a")), Event(2.0, "seal")
    )
    assert found.changes[2] == Change(7.0, 7, 37, seals=False, is_update=True)


def test_without_streaming_everything_comes_with_the_seal() -> None:
    found = the_task(Event(1.0, "append", ("a",)), Event(4.0, "seal"))
    assert not_streamed([found]) == [Task("q", (Change(9.0, 0, 20, seals=True),))]


def test_open_tokens_are_those_known_before_the_seal() -> None:
    first = the_task(Event(1.0, "append", ("c",)), Event(4.0, "append", ("a",)), Event(4.0, "seal"))
    other = the_task(Event(1.0, "append", ("b",)), Event(4.0, "seal"))
    other = replace(other, name="other")
    # When the first has all its documents, and none of it counts after its seal.
    assert peak_tokens([first, other]) == (7 + 30 + 10) + (7 + 20)
    later = replace(
        other, changes=tuple(each._replace(at_s=each.at_s + 9) for each in other.changes)
    )
    assert peak_tokens([first, later]) == 7 + 30 + 10


def test_changes_of_one_moment_stay_in_their_order() -> None:
    found = the_task(Event(1.0, "append", ("a",)), Event(1.0, "seal"))
    other = replace(found, name="r")
    names = [(each.name, change.seals) for change, each in in_order([found, other])]
    assert names == [
        ("q", False),
        ("r", False),
        *[("q", False), ("q", True)],
        *[("r", False), ("r", True)],
    ]


def test_a_step_costs_its_fixed_part_once() -> None:
    law = StepLaw(fixed_s=1.0, per_token_s=0.1, per_pair_s=0.01, per_context_token_s=0.001)
    assert law.seconds([]) == 0.0
    # Tokens 3 and 4 see three and four others.
    assert law.seconds([(2, 4)]) == pytest.approx(1.0 + 0.2 + 0.07 + 0.002)
    assert law.seconds([(2, 4), (0, 1)]) == pytest.approx(1.0 + 0.3 + 0.08 + 0.002)
    assert law.seconds_to(5, token_budget=2) == pytest.approx(3.0 + 0.5 + 0.15 + 0.006)


@pytest.mark.parametrize("profile", shipped_profiles(), ids=lambda each: each.accelerator.name)
def test_the_law_is_close_to_every_shipped_profile(profile: CostProfile) -> None:
    law = law_of(profile)
    assert min(law.fixed_s, law.per_token_s, law.per_pair_s) >= 0
    # The measured one has noise.
    assert worst_error(law, profile) < (0.12 if profile.accelerator.name == "cpu" else 0.02)


def a_decode_worker(num_tokens: int = 1000, max_sessions: int = 8) -> DecodeWorker:
    link = Link(bytes_per_s=100.0, latency_s=0.5)
    return DecodeWorker(DecodeSettings(num_tokens, 1.0, link, LAW, max_sessions))


def test_fetches_share_the_link_one_after_the_other() -> None:
    worker = a_decode_worker()
    assert worker.prefetch_kv(0.0, "b", 40) == pytest.approx(0.9)
    worker.prefetched("b")
    worker.submit(Answer("a", 101, 2))
    worker.submit(Answer("b", 51, 2))
    assert [(at_s, each.name) for at_s, each in worker.take_up(10.0)] == [
        (pytest.approx(11.5), "a"),
        (pytest.approx(12.1), "b"),
    ]
    assert worker.begin_step() is None
    assert worker.num_sessions == 2


def test_what_was_fetched_ahead_is_cut_taken_and_makes_room() -> None:
    worker = a_decode_worker(num_tokens=200)
    for name, num_tokens in (("a", 60), ("b", 80)):
        assert worker.prefetch_kv(0.0, name, num_tokens) is not None
        worker.prefetched(name)
    assert worker.prefetch_kv(0.0, "c", 61) is None  # it never makes room for itself
    worker.cut("b", 20)
    assert worker.prefetch_kv(0.0, "b", 40) is not None
    worker.cut("b", 30)  # on its way, and in vain
    worker.prefetched("b")
    worker.submit(Answer("d", 150, 10))
    worker.submit(Answer("b", 30, 9))
    worker.take_up(0.0)
    # "a" had to go for "d"; of "b" 20 tokens were left.
    assert worker.counters == HandoverCounters(160, 20, 149 + 9)


def test_a_full_decode_worker_takes_the_next_when_one_is_done() -> None:
    worker = a_decode_worker(num_tokens=120)
    for name in "ab":
        worker.submit(Answer(name, 100, 1))
    ((_, first),) = worker.take_up(0.0)
    worker.fetched(first)
    assert worker.take_up(1.0) == []
    assert worker.begin_step() == pytest.approx(LAW.seconds([(99, 100)]))
    assert worker.end_step(worker.names()) == ["a"]
    assert [each.name for _, each in worker.take_up(2.0)] == ["b"]


def test_what_the_paper_published() -> None:
    found = {(each.setting, each.system): each.ttft_s for each in published()}
    assert len(settings()) == 14
    assert len(found) == 14 * 5
    pressed = next(each for each in settings() if each.shape == "anns" and each.mode == "swap")
    assert found[pressed, "lcas"]["p999"] == pytest.approx(7.3909 / 0.864)
    assert found[pressed, NOT_STREAMED]["p50"] == 0.7998


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_options_that_are_no_numbers_are_refused(value: str) -> None:
    result = CliRunner().invoke(app, ["trace", "t.jsonl", "--profile", "p", "--kv-gib", value])
    assert result.exit_code == 2
    assert "--kv-gib" in result.output


def test_the_row_without_streaming_names_its_policy(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, a_header(), [a_session(Event(0, "append", ("a",)), Event(1, "seal"))])
    machine = ["--profile", "h200_llama-3.1-8b_tp2", "--kv-gib", "10"]
    args = ["trace", str(path), *machine, "--policy", "srpf", "--policy", "fcfs", "--non-streaming"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    systems = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "|" in line]
    assert {"srpf", "fcfs", "non-streaming, default"} <= set(systems)
