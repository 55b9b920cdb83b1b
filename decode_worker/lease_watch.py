"""Until when prefill has certainly held the KV that a decode worker reads. Pure.

A prefill worker frees blocks when their lease ends. A reader that was stopped
that long (a paused machine, a lost network) finds its read complete, but the
blocks may hold other KV. So each read is judged when it ends: was the lease still
valid? A lease begins with a deadline that prefill sets; each heartbeat that is sent
before the deadline extends it.

All times are seconds of the reader's own monotonic clock.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum

# Covers a heartbeat's latency and the error in the offset of the other clock.
MARGIN_S = 0.25


def clock_offset_s(host: str, measured_s: float) -> float:
    """Returns how far the monotonic clock of a prefill worker at `host` is ahead of ours.

    `measured_s` comes from the handshake, and errs by up to half the handshake's
    duration: seconds on a busy machine, which would lengthen or shorten every lease. On
    one machine there is one clock. `host` is an IP address or a name.
    """
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return 0.0 if is_here else measured_s


class Expiry(StrEnum):
    """Why a lease had ended before the read under it."""

    # No heartbeat went out since the lease began, or was extended.
    NO_HEARTBEAT = "no_heartbeat"
    # One went out after the lease's end: this process stood still, or its steps take too long.
    LATE_HEARTBEAT = "late_heartbeat"


# Their names among a connector's figures of a step.
STATS = {expiry: f"expired_reads_{expiry}" for expiry in Expiry}


def expired_reads(stats: Mapping[str, Sequence[int]]) -> Iterator[tuple[Expiry, int]]:
    """Yields from a connector's figures how many reads ended after their lease, by why."""
    for expiry, name in STATS.items():
        if count := sum(stats.get(name, ())):
            yield expiry, count


class LeaseWatch:
    """The leases under which one worker process reads."""

    def __init__(self, extension_s: float) -> None:
        # By how much a heartbeat extends a lease, from its arrival on.
        self._extension_s = extension_s
        # Deadlines by the name under which prefill holds the blocks.
        self._until_s: dict[str, float] = {}
        # Those of them for which a heartbeat was sent too late.
        self._missed: set[str] = set()
        # Heartbeats that were sent before the deadline was known.
        self._signs_s: dict[str, list[float]] = {}

    def sent_signs(self, names: Collection[str], now_s: float) -> None:
        """Heartbeats go out for `names`, and for no others."""
        self._signs_s = {name: s for name, s in self._signs_s.items() if name in names}
        for name in names:
            if name in self._until_s:
                self._extend(name, now_s)
            else:
                self._signs_s.setdefault(name, []).append(now_s)

    def began(self, name: str, deadline_s: float) -> None:
        """A read begins under a lease that ends at `deadline_s` unless heartbeats extend it."""
        self._until_s[name] = deadline_s
        for sent_s in self._signs_s.pop(name, ()):
            self._extend(name, sent_s)

    def began_before(self, name: str, deadline_s: float) -> None:
        """Like `began`, for a read that began earlier; ignored where `began` was called."""
        if name not in self._until_s:
            self.began(name, deadline_s)

    def ended(self, name: str, now_s: float) -> Expiry | None:
        """A read ends; returns why its lease is not valid any more.

        None for a valid lease, and for an unknown name.
        """
        until_s, is_missed = self._until_s.pop(name, None), name in self._missed
        self._missed.discard(name)
        if until_s is None or now_s + MARGIN_S <= until_s:
            return None
        return Expiry.LATE_HEARTBEAT if is_missed else Expiry.NO_HEARTBEAT

    def _extend(self, name: str, sent_s: float) -> None:
        if sent_s + MARGIN_S <= self._until_s[name]:
            self._until_s[name] = max(self._until_s[name], sent_s + self._extension_s)
        else:
            self._missed.add(name)
