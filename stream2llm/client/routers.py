"""Which of several routers is asked next. Pure; the caller gives the time.

In turn, so that a client's sessions are spread. One that failed is asked again only
after a while, or when there is no other.
"""

from __future__ import annotations

_AVOIDED_S = 10.0


class Routers:
    """Routers by their number, from 0."""

    def __init__(self, num_routers: int, first: int = 0) -> None:
        self._order = [(first + number) % num_routers for number in range(num_routers)]
        self._failed_at_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._order)

    def next(self, now_s: float) -> int:
        """Returns the router for the next call."""
        avoided_until_s = {
            number: self._failed_at_s.get(number, -_AVOIDED_S) + _AVOIDED_S
            for number in self._order
        }
        # The first of equals: the one whose turn is longest ago.
        chosen = min(self._order, key=lambda number: max(avoided_until_s[number], now_s))
        self._order.remove(chosen)
        self._order.append(chosen)
        return chosen

    def failed(self, number: int, now_s: float) -> None:
        """The router could not be reached, was lost or sends sessions away."""
        self._failed_at_s[number] = now_s

    def served(self, number: int) -> None:
        """The router has taken a session or answered a call."""
        self._failed_at_s.pop(number, None)
