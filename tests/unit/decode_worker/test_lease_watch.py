"""Whether a read ended before its lease."""

from __future__ import annotations

from typing import Any

import pytest

from decode_worker.lease_watch import MARGIN_S, Expiry, LeaseWatch, clock_offset_s

# A lease of 9 s, which a sign of life makes 6 s longer than the moment of its arrival.
NAME = "s-a#1"


@pytest.fixture
def watch() -> LeaseWatch:
    return LeaseWatch(extension_s=6.0)


BEGAN = ("began", NAME, 9.0)
TOLD_AT_ITS_END = ("began_before", NAME, 9.0)


def signs(*sent_s: float, name: str = NAME) -> list[tuple[Any, ...]]:
    return [("sent_signs", [name], each) for each in sent_s]


@pytest.mark.parametrize(
    ("events", "ended_s", "expiry"),
    [
        pytest.param([BEGAN], 9.0 - MARGIN_S, None, id="within-its-lease"),
        pytest.param([BEGAN], 9.0, Expiry.NO_HEARTBEAT, id="after-its-lease"),
        pytest.param([BEGAN, *signs(4.0, 8.0, 12.0)], 17.0, None, id="signs-make-it-last"),
        # The sender slept.
        pytest.param([BEGAN, *signs(9.0)], 9.5, Expiry.LATE_HEARTBEAT, id="a-late-sign-is-none"),
        pytest.param([*signs(5.0, 10.0), BEGAN], 15.0, None, id="signs-before-the-read-count"),
        pytest.param(
            [*signs(5.0), *signs(6.0, name="other"), BEGAN],
            10.0,
            Expiry.NO_HEARTBEAT,
            id="nothing-is-remembered-of-those-that-no-sign-goes-to",
        ),
        pytest.param([*signs(4.0), TOLD_AT_ITS_END], 9.7, None, id="told-at-its-end"),
        pytest.param([BEGAN, *signs(8.0), TOLD_AT_ITS_END], 13.0, None, id="told-again-later"),
    ],
)
def test_a_read_counts_that_ended_before_its_lease(
    watch: LeaseWatch, events: list[tuple[Any, ...]], ended_s: float, expiry: Expiry | None
) -> None:
    for method, *args in events:
        getattr(watch, method)(*args)
    assert watch.ended(NAME, ended_s) is expiry
    # The next lease has missed nothing.
    watch.began_before(NAME, 20.0)
    assert watch.ended(NAME, 20.0) is Expiry.NO_HEARTBEAT


def test_of_a_read_without_a_known_lease_nothing_is_said(watch: LeaseWatch) -> None:
    assert watch.ended(NAME, now_s=1e9) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1", "localhost"])
def test_on_one_machine_there_is_one_clock_however_long_the_handshake_took(host: str) -> None:
    assert clock_offset_s(host, measured_s=2.4) == 0.0


@pytest.mark.parametrize("host", ["10.0.0.7", "prefill-0.example", "fe80::1"])
def test_the_clock_of_another_machine_is_as_measured(host: str) -> None:
    assert clock_offset_s(host, measured_s=-3000.5) == -3000.5
