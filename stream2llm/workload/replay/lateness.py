"""How late the events of one session are, and whose fault that is. Pure.

An event can be begun as soon as it is due and the system has taken the one before it.
That it was begun later than that is the generator's fault; everything else that makes it
late is the system's (no credit, no admission).
"""

from __future__ import annotations


class Lateness:
    """The worst of one session, in seconds."""

    def __init__(self) -> None:
        # When the system had taken the event before.
        self._free_s = 0.0
        self.total_s = 0.0
        # The generator's share of it.
        self.own_s = 0.0

    def begun(self, due_s: float, now_s: float) -> None:
        """An event is begun now."""
        self.total_s = max(self.total_s, now_s - due_s)
        self.own_s = max(self.own_s, now_s - max(due_s, self._free_s))

    def taken(self, now_s: float) -> None:
        """The system has taken it now, and may be given the next one."""
        self._free_s = now_s

    def sent(self, due_s: float, now_s: float) -> None:
        """The same, of an event whose way to the system counts as its lateness too."""
        self.taken(now_s)
        self.total_s = max(self.total_s, now_s - due_s)
