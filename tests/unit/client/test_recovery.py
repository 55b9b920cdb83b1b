"""What is decided when a router fails, and which router is asked next."""

from __future__ import annotations

import pytest

from stream2llm.api.errors import (
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.client.recovery import (
    NO_RECOVERY,
    Again,
    GiveUp,
    Recovery,
    SessionRecovery,
    is_loss,
    recovery_of,
)
from stream2llm.client.routers import Routers

GONE = UnavailableError("socket closed")


def a_recovery(num_routers: int = 2, **limits: int) -> Recovery:
    return Recovery(SessionRecovery(**limits), num_routers)


def given_up(verdict: Again | GiveUp) -> Stream2LLMError:
    assert isinstance(verdict, GiveUp)
    return verdict.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnavailableError("socket closed"), True),
        (UnavailableError("it drains", reason="DRAINING"), True),
        (UnavailableError("its engine died", reason="WORKER_LOST"), True),
        (UnavailableError("it may be the cause", reason="WORKER_LOST", retry_after_s=0), False),
        (InternalError("Stream removed", reason="UNKNOWN"), True),
        (Stream2LLMError("reset", reason="CANCELLED"), True),
        (OverloadedError("full"), False),
        (InternalError("a bug"), False),
        (IdleTimeoutError("silent"), False),
        (IdleTimeoutError("nothing came", reason="NOT_OPENED"), True),
        (InvalidRequestError("bad"), False),
    ],
)
def test_what_another_router_may_mend(error: Stream2LLMError, expected: bool) -> None:
    assert is_loss(error) is expected


def test_a_session_that_may_be_the_cause_is_taken_to_no_other_router() -> None:
    error = UnavailableError("two engines died", reason="WORKER_LOST")
    error.retry_after_s = None  # as it comes from a router that says so
    assert not is_loss(error)
    assert given_up(a_recovery().lost(error, 0, is_kept=True)) is error


def test_each_router_is_asked_once_for_a_new_session() -> None:
    recovery = a_recovery(num_routers=3)
    assert recovery.refused(GONE, 0) == Again(0.0)
    assert recovery.refused(GONE, 0) == Again(0.0)
    assert given_up(recovery.refused(GONE, 0)) is GONE


def test_a_new_session_that_is_refused_for_itself_is_not_tried_elsewhere() -> None:
    error = InvalidRequestError("bad")
    assert given_up(a_recovery().refused(error, 0)) is error


def test_the_first_restart_is_made_at_once_and_the_last_is_the_limit() -> None:
    recovery = a_recovery(max_restarts=3)
    verdicts = [recovery.lost(GONE, 0, is_kept=True) for _ in range(3)]
    assert verdicts == [Again(pause, is_restart=True) for pause in (0.0, 0.25, 0.5)]
    error = given_up(recovery.lost(GONE, 0, is_kept=True))
    assert isinstance(error, UnavailableError)
    assert error.message == (
        "socket closed; the client opened the session again 3 times, and no more:"
        " the limit is 3 (max_restarts)"
    )


def test_without_recovery_the_error_stays_as_it_is() -> None:
    assert given_up(Recovery(NO_RECOVERY, 2).lost(GONE, 0, is_kept=False)) is GONE


def test_a_session_whose_context_is_not_kept_fails() -> None:
    error = given_up(a_recovery(max_kept_bytes=7).lost(GONE, 0, is_kept=False))
    assert "its context has more than 7 bytes (max_kept_bytes)" in error.message


def test_routers_are_asked_in_rounds_with_growing_pauses_until_the_wait_is_over() -> None:
    recovery = a_recovery(num_routers=2, max_wait_s=3)
    now_s = 100.0
    assert recovery.lost(GONE, now_s, is_kept=True) == Again(0.0, is_restart=True)
    pauses = []
    while isinstance(verdict := recovery.refused(UnavailableError("down"), now_s), Again):
        assert not verdict.is_restart
        pauses.append(verdict.pause_s)
        now_s += verdict.pause_s
    assert pauses == [0.0, 0.25, 0.25, 0.5, 0.5, 1.0]
    message = given_up(verdict).message
    assert message.startswith("socket closed; the client opened the session again 0 times")
    assert message.endswith("no router took it within 3 s (max_wait_s): down")


def test_a_router_that_is_full_is_asked_again_when_it_says_so() -> None:
    recovery = a_recovery(num_routers=2)
    recovery.lost(GONE, 0, is_kept=True)
    assert recovery.refused(OverloadedError("full", retry_after_s=7), 0) == Again(7.0)
    error = given_up(recovery.refused(OverloadedError("too large", retry_after_s=0), 0))
    assert isinstance(error, OverloadedError)
    assert error.message.endswith("opened the session again once, and no more: the next router refused it")  # fmt: skip


def test_the_callers_own_limit_is_reported_as_it_is() -> None:
    recovery = a_recovery()
    recovery.lost(GONE, 0, is_kept=True)
    late = IdleTimeoutError("late", reason="DEADLINE_EXCEEDED")
    assert given_up(recovery.refused(late, 0)) is late


def test_an_opening_that_was_on_its_way_for_too_long_is_sent_again() -> None:
    recovery, late = a_recovery(), IdleTimeoutError("nothing came", reason="NOT_OPENED")
    assert recovery.refused(late, 0) == Again(0.0)
    recovery.lost(GONE, 0, is_kept=True)
    assert isinstance(recovery.refused(late, 0), Again)


def test_recover_is_a_truth_value_or_limits() -> None:
    assert recovery_of(True) == SessionRecovery()
    assert recovery_of(False) is NO_RECOVERY
    assert recovery_of(limits := SessionRecovery(max_restarts=1)) is limits
    with pytest.raises(InvalidRequestError, match="recover is 1"):
        recovery_of(1)


# -- which router ---------------------------------------------------------------------


def test_routers_are_taken_in_turn() -> None:
    routers = Routers(3, first=1)
    assert [routers.next(0) for _ in range(5)] == [1, 2, 0, 1, 2]


def test_a_router_that_failed_is_left_out_for_a_while() -> None:
    routers = Routers(3)
    routers.failed(1, now_s=100)
    assert [routers.next(101) for _ in range(4)] == [0, 2, 0, 2]
    assert 1 in [routers.next(111) for _ in range(3)]


def test_of_routers_that_failed_the_first_one_is_asked_again_first() -> None:
    routers = Routers(2)
    routers.failed(1, now_s=100)
    routers.failed(0, now_s=101)
    assert routers.next(102) == 1
    routers.failed(1, now_s=103)
    assert routers.next(104) == 0
    routers.served(1)
    assert [routers.next(105) for _ in range(2)] == [1, 1]
