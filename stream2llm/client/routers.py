"""Which of several routers is asked next. Pure; the caller gives the time.

In turn, so that a client's sessions are spread. One that failed is asked again only
after a while, or when there is no other.
"""

from __future__ import annotations

from collections.abc import Collection

_AVOIDED_S = 10.0


class Routers:
    """Routers by their number, from 0."""

    def __init__(self, num_routers: int, first: int = 0) -> None:
        self._order = [(first + number) % num_routers for number in range(num_routers)]
        self._failed_at_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._order)

    def become(self, numbers: Collection[int]) -> None:
        """These are the routers from now on, at least one; new ones are asked first."""
        new = [number for number in numbers if number not in self._order]
        self._order = new + [number for number in self._order if number in numbers]
        self._failed_at_s = {n: at_s for n, at_s in self._failed_at_s.items() if n in numbers}

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
        if number in self._order:  # it may be gone for good
            self._failed_at_s[number] = now_s

    def served(self, number: int) -> None:
        """The router has taken a session or answered a call."""
        self._failed_at_s.pop(number, None)
