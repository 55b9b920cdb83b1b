"""Until when the KV that a decode worker reads was surely held for it. Pure.

A prefill worker frees blocks when their lease ends. A reader that was stopped
for that long (a paused machine, a lost network) finds its read complete, and in
the blocks whatever came after. So each read is judged when it ends: was the
lease still on? A lease begins with a deadline that prefill set, and each sign
of life moves it on, if it was sent before the lease was over.

All times are seconds of the reader's own monotonic clock.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

# For the way of a sign of life, and for what is not known of the other clock.
MARGIN_S = 0.25


def clock_offset_s(host: str, measured_s: float) -> float:
    """How far the monotonic clock of a prefill worker at `host` is ahead of ours.

    A handshake measures it, and errs by half of what the handshake took: seconds on a
    busy machine, by which every lease would seem longer or shorter than it is. On one
    machine there is one clock. `host` is an IP address or a name.
    """
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return 0.0 if is_here else measured_s


class LeaseWatch:
    """The leases that one worker process reads under."""

    def __init__(self, extension_s: float) -> None:
        # What a sign of life is worth, from its arrival on.
        self._extension_s = extension_s
        # By the name that prefill knows the blocks by.
        self._until_s: dict[str, float] = {}
        # Signs of life that were sent before the deadline was known.
        self._signs_s: dict[str, list[float]] = {}

    def sent_signs(self, names: Collection[str], now_s: float) -> None:
        """Signs of life go out for these, and for no others."""
        self._signs_s = {name: s for name, s in self._signs_s.items() if name in names}
        for name in names:
            if name in self._until_s:
                self._extend(name, now_s)
            else:
                self._signs_s.setdefault(name, []).append(now_s)

    def began(self, name: str, deadline_s: float) -> None:
        """A read begins under a lease that ends then, if nobody gave a sign of life."""
        self._until_s[name] = deadline_s
        for sent_s in self._signs_s.pop(name, ()):
            self._extend(name, sent_s)

    def began_before(self, name: str, deadline_s: float) -> None:
        """The same, told late; nothing new where its beginning was told."""
        if name not in self._until_s:
            self.began(name, deadline_s)

    def ended(self, name: str, now_s: float) -> bool:
        """A read has ended; whether its lease was still on. Nothing is known of others: True."""
        until_s = self._until_s.pop(name, None)
        return until_s is None or now_s + MARGIN_S <= until_s

    def _extend(self, name: str, sent_s: float) -> None:
        if sent_s + MARGIN_S <= self._until_s[name]:
            self._until_s[name] = max(self._until_s[name], sent_s + self._extension_s)
