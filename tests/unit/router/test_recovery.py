"""Which losses a session survives, how often, and after which pauses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.absence import Absences
from router.kv_prefetch_log import KvPrefetchLog, Offered, OfferVerdict, Spliced
from router.progress import ProgressTracker
from router.recovery import Cause, Failure, GiveUp, Recovery, Restart, drained, final_error
from stream2llm.api.backoff import pause_s
from stream2llm.api.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.settings.router_spec import RecoveryOptions
from stream2llm.serving.settings.worker_spec import Role


@dataclass(frozen=True, eq=False)
class Process:
    """A worker's; one of the same name is another one."""

    worker_id: str
    node: str = "here"


def lost(
    role: Role = "prefill",
    reason: str = "WORKER_LOST",
    worker: Process | None = None,
    *,
    was_held: bool = True,
) -> Failure:
    error = UnavailableError("gone", reason=reason)
    return Failure(error, role, worker or Process(f"{role}-0"), was_held)


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (lost("prefill"), Cause.PREFILL_LOST),
        (lost("decode"), Cause.DECODE_LOST),
        (lost("decode", "NO_DECODE_WORKER"), Cause.DECODE_LOST),
        (lost("decode", "KV_LOST"), Cause.KV_LOST),
        (lost("decode", "FULL"), Cause.REFUSED),
    ],
)
def test_the_first_loss_is_answered_at_once(failure: Failure, cause: Cause) -> None:
    assert Recovery(RecoveryOptions()).lost(failure, 0.0) == Restart(cause, 0.0)


def test_lost_kv_makes_other_workers_better_first_of_decode_then_of_prefill() -> None:
    recovery, decode, prefill = Recovery(RecoveryOptions()), Process("d"), Process("p")
    recovery.lost(lost("decode"), 0.0, prefill)
    assert recovery.rather_not == set()
    for avoided in ({decode}, {decode, prefill}, {decode, prefill}):
        recovery.lost(lost("decode", "KV_LOST", decode), 0.0, prefill)
        assert recovery.rather_not == avoided


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("too long", reason="CONTEXT_TOO_LONG"),
        InternalError("a bug"),
        OverloadedError("too large"),
        UnavailableError("of another kind"),
    ],
)
def test_what_another_worker_would_repeat_is_not_recovered(error: Stream2LLMError) -> None:
    recovery = Recovery(RecoveryOptions())
    failure = Failure(error, "prefill", Process("prefill-0"))
    verdict = recovery.lost(failure, 0.0)
    assert verdict == GiveUp()
    assert final_error(failure, verdict, 0, 5.0) is error
    assert recovery.num_restarts == 0


def test_without_restarts_every_loss_fails() -> None:
    recovery = Recovery(RecoveryOptions(max_restarts=0))
    failure = lost()
    verdict = recovery.lost(failure, 0.0)
    assert isinstance(verdict, GiveUp)
    error = final_error(failure, verdict, recovery.num_restarts, 7.0)
    assert type(error) is UnavailableError
    assert (error.reason, error.retry_after_s) == ("WORKER_LOST", 7.0)
    assert error.message == (
        "gone; the session was restarted 0 times, and no more:"
        " the limit is 0 (router.recovery.max_restarts)"
    )


def test_moves_away_from_workers_that_drain_count_towards_no_limit() -> None:
    recovery = Recovery(RecoveryOptions(max_restarts=1))
    for number in range(20):
        failure = drained(Process(f"prefill-{number}"), "prefill")
        assert recovery.lost(failure, 0.0) == Restart(Cause.REFUSED, 0.0, is_move=True)
    assert (recovery.num_restarts, recovery.num_deaths) == (0, 0)
    assert isinstance(recovery.lost(lost(), 0.0), Restart)
    off = Recovery(RecoveryOptions(max_restarts=0))
    assert isinstance(off.lost(drained(Process("prefill-0"), "prefill"), 0.0), GiveUp)
    assert not off.may_move


@pytest.mark.parametrize(
    "second",
    [
        lost("decode", worker=Process("decode-0", "another node")),
        lost("prefill", worker=Process("prefill-1")),
    ],
)
def test_a_session_under_which_two_engines_died_gets_no_third(second: Failure) -> None:
    recovery = Recovery(RecoveryOptions(max_restarts=9))
    assert isinstance(recovery.lost(lost("prefill"), 0.0), Restart)
    verdict = recovery.lost(second, 1.0)
    assert isinstance(verdict, GiveUp)
    assert "2 engines died while they held it" in verdict.why


def test_a_node_that_takes_both_workers_along_is_one_incident() -> None:
    """One after the other within seconds; an hour later it would be another one."""
    for later_s, num_deaths in ((0.9, 1), (3600.0, 2)):
        recovery = Recovery(RecoveryOptions(max_restarts=9, max_engine_deaths=9))
        recovery.lost(lost("decode"), 0.0)
        recovery.lost(lost("prefill"), later_s)
        assert recovery.num_deaths == num_deaths


def test_one_engine_dies_once_and_one_that_was_gone_did_not_die_of_the_session() -> None:
    recovery = Recovery(RecoveryOptions(max_restarts=9))
    process = Process("prefill-0")
    verdicts = [
        recovery.lost(lost(worker=process), 0.0),
        recovery.lost(lost(worker=process), 3600.0),
        recovery.lost(lost(was_held=False), 3600.0),
        recovery.lost(lost("decode", "KV_LOST"), 3600.0),
        recovery.lost(lost("decode", "DRAINING"), 3600.0),
    ]
    assert all(isinstance(verdict, Restart) for verdict in verdicts)
    assert recovery.num_deaths == 1


LOSSES = st.builds(
    lost,
    st.sampled_from(["prefill", "decode"]),
    st.sampled_from(["WORKER_LOST", "KV_LOST", "DRAINING", "FULL", "CONTEXT_TOO_LONG"]),
    st.sampled_from([Process(f"p{number}") for number in range(4)]),
    was_held=st.booleans(),
)


@given(
    st.lists(st.tuples(LOSSES, st.floats(0, 10)), max_size=20), st.integers(0, 5), st.integers(1, 4)
)
def test_no_sequence_of_losses_passes_a_limit(
    losses: list[tuple[Failure, float]], max_restarts: int, max_engine_deaths: int
) -> None:
    options = RecoveryOptions(max_restarts=max_restarts, max_engine_deaths=max_engine_deaths)
    recovery, restarts, now_s = Recovery(options), 0, 0.0
    for failure, passed_s in losses:
        now_s += passed_s
        verdict = recovery.lost(failure, now_s)
        if isinstance(verdict, GiveUp):
            break  # the session ends with it
        assert verdict.is_move is (failure.error.reason == "DRAINING")
        restarts += not verdict.is_move
        assert verdict.pause_s == (0.0 if verdict.is_move else pause_s(restarts))
        assert recovery.num_deaths < max_engine_deaths
    assert restarts == recovery.num_restarts <= max_restarts


def test_pauses_grow_up_to_a_bound() -> None:
    pauses = [pause_s(number) for number in range(1, 100)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[1] > 0
    assert pauses[-1] == pauses[20] <= 10


# -- figures ----------------------------------------------------------------------------


def test_progress_falls_back_and_sums_add_up_over_workers() -> None:
    tracker = ProgressTracker(100)
    tracker.splice(1, 0, 40)
    tracker.report(PrefillProgress(1, 40, 39, computed_tokens=39, invalidated_tokens=5))
    tracker.splice(2, 40, 60)  # not sent yet
    tracker.restarted(1)
    figures = tracker.figures()
    assert (figures.prefilled_tokens, figures.received_tokens, figures.restarts) == (0, 60, 1)
    assert figures.credit_tokens == 100 - 59
    assert (figures.computed_tokens, figures.invalidated_tokens) == (39, 5)
    # So much of what the new worker computes, the old one had.
    assert tracker.report(PrefillProgress(1, 40, 30, computed_tokens=20, reused_tokens=10)) == 20
    assert tracker.report(PrefillProgress(2, 60, 59, computed_tokens=49, reused_tokens=10)) == 19
    figures = tracker.figures()
    assert (figures.computed_tokens, figures.reused_tokens) == (39 + 49, 10)
    assert figures.prefilled_tokens == 59


def test_a_loss_before_what_was_lost_is_computed_owes_it_still() -> None:
    tracker = ProgressTracker(100)
    tracker.splice(1, 0, 40)
    tracker.report(PrefillProgress(1, 40, 39, computed_tokens=39))
    tracker.restarted(1)
    assert tracker.report(PrefillProgress(1, 40, 10, computed_tokens=10)) == 10
    tracker.restarted(1)
    assert tracker.report(PrefillProgress(1, 40, 39, computed_tokens=39)) == 29
    assert tracker.figures().restarts == 2


# -- offers -------------------------------------------------------------------------------


def test_a_lost_prefill_worker_takes_its_offers_along() -> None:
    log = KvPrefetchLog[str]()
    log.spliced(1, 0, as_tokens(range(8)))
    log.offered(Offered(1, 4), "at decode")
    first = log.next()
    assert first is not None
    log.offered(Offered(1, 8), "waits")
    log.spliced(2, 8, as_tokens(range(12)))  # not sent yet
    assert log.lost() == Spliced(("waits",), aborts=True)
    assert log.is_in_vain(first)
    assert log.lost() == Spliced(), "it is aborted once"
    # The next worker begins anew, and its offers wait for the end of that fetch.
    assert log.offered(Offered(1, 4), "new") is OfferVerdict.FETCH
    assert log.next() is None
    log.ended(first)
    again = log.next()
    assert again.handover == "new"
    assert not log.is_in_vain(again)


# -- when to try again --------------------------------------------------------------------


def test_a_worker_is_expected_after_as_long_as_the_last_ones_were_away() -> None:
    absences = Absences()
    absences.left("prefill-0", "prefill", 100.0)
    assert absences.expected_s("prefill", 100.0) == 30.0  # nothing is known yet
    absences.left("prefill-0", "prefill", 105.0)  # the view says so too
    absences.returned("prefill-0", 150.0)
    absences.left("prefill-1", "prefill", 200.0)
    assert absences.expected_s("prefill", 210.0) == 40.0
    assert absences.expected_s("prefill", 900.0) == 1.0
    assert absences.expected_s("decode", 210.0) == 30.0
    absences.returned("prefill-1", 220.0)
    absences.returned("never-away", 220.0)
    assert absences.expected_s("prefill", 220.0) == 35.0


def test_workers_that_never_return_are_forgotten() -> None:
    absences = Absences()
    absences.left("scaled-down", "decode", 0.0)
    absences.left("decode-0", "decode", 1000.0)
    assert absences.expected_s("decode", 1000.0) == 30.0
