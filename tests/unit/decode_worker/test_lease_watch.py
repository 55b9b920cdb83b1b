"""Whether a read ended before its lease."""

from __future__ import annotations

import pytest

from decode_worker.lease_watch import MARGIN_S, Expiry, LeaseWatch, clock_offset_s

# A lease of 9 s, which a sign of life makes 6 s longer than the moment of its arrival.
NAME = "s-a#1"


@pytest.fixture
def watch() -> LeaseWatch:
    return LeaseWatch(extension_s=6.0)


def test_a_read_within_its_lease_counts(watch: LeaseWatch) -> None:
    watch.began(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=9.0 - MARGIN_S) is None


def test_a_read_that_ends_after_its_lease_does_not(watch: LeaseWatch) -> None:
    watch.began(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=9.0) is Expiry.NO_HEARTBEAT


def test_signs_of_life_make_a_lease_last(watch: LeaseWatch) -> None:
    watch.began(NAME, deadline_s=9.0)
    for sent_s in (4.0, 8.0, 12.0):
        watch.sent_signs([NAME], sent_s)
    assert watch.ended(NAME, now_s=17.0) is None


def test_a_sign_that_comes_too_late_is_none(watch: LeaseWatch) -> None:
    watch.began(NAME, deadline_s=9.0)
    watch.sent_signs([NAME], 9.0)  # the sender slept
    assert watch.ended(NAME, now_s=9.5) is Expiry.LATE_HEARTBEAT
    watch.began(NAME, deadline_s=20.0)  # of the next lease nothing was missed
    assert watch.ended(NAME, now_s=20.0) is Expiry.NO_HEARTBEAT


def test_signs_count_that_were_sent_before_the_read(watch: LeaseWatch) -> None:
    watch.sent_signs([NAME], 5.0)
    watch.sent_signs([NAME], 10.0)
    watch.began(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=15.0) is None


def test_nothing_is_remembered_of_those_that_no_sign_goes_to(watch: LeaseWatch) -> None:
    watch.sent_signs([NAME], 5.0)
    watch.sent_signs(["other"], 6.0)
    watch.began(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=10.0) is Expiry.NO_HEARTBEAT


def test_of_a_read_without_a_known_lease_nothing_is_said(watch: LeaseWatch) -> None:
    assert watch.ended(NAME, now_s=1e9) is None


def test_a_read_whose_beginning_is_told_at_its_end_is_judged_too(watch: LeaseWatch) -> None:
    watch.sent_signs([NAME], 4.0)
    watch.began_before(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=9.7) is None
    watch.began_before(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=9.7) is Expiry.NO_HEARTBEAT


def test_what_is_told_again_later_changes_nothing(watch: LeaseWatch) -> None:
    watch.began(NAME, deadline_s=9.0)
    watch.sent_signs([NAME], 8.0)
    watch.began_before(NAME, deadline_s=9.0)
    assert watch.ended(NAME, now_s=13.0) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1", "localhost"])
def test_on_one_machine_there_is_one_clock_however_long_the_handshake_took(host: str) -> None:
    assert clock_offset_s(host, measured_s=2.4) == 0.0


@pytest.mark.parametrize("host", ["10.0.0.7", "prefill-0.example", "fe80::1"])
def test_the_clock_of_another_machine_is_as_measured(host: str) -> None:
    assert clock_offset_s(host, measured_s=-3000.5) == -3000.5
