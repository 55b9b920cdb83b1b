"""How long lost workers stay away, learned from those that came back. Pure.

A client whose session cannot be served gets the time after which a worker is expected.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.quotas import newer_mean_s
from stream2llm.serving.settings.worker_spec import Role

# An engine takes most of a minute to start; assumed until one was seen to.
_ASSUMED_S = 30.0
_SHORTEST_S = 1.0
# Absences that last longer than this are forgotten.
_FORGET_AFTER_S = 900.0
# Weight of the newest absence in the mean.
_NEWEST = 0.5


@dataclass(frozen=True, slots=True)
class _Away:
    role: Role
    since_s: float


class Absences:
    """The workers that are away, by id. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._away: dict[str, _Away] = {}
        self._mean_s: dict[Role, float] = {}

    def left(self, worker_id: str, role: Role, now_s: float) -> None:
        """The worker cannot be used from now on; ignored for one that is away already."""
        for known, away in list(self._away.items()):
            if now_s - away.since_s > _FORGET_AFTER_S:
                del self._away[known]
        self._away.setdefault(worker_id, _Away(role, now_s))

    def returned(self, worker_id: str, now_s: float) -> None:
        """The worker, or its successor, can be used."""
        away = self._away.pop(worker_id, None)
        if away is not None:
            lasted_s = now_s - away.since_s
            before_s = self._mean_s.get(away.role, lasted_s)
            self._mean_s[away.role] = newer_mean_s(before_s, lasted_s, _NEWEST)

    def expected_s(self, role: Role, now_s: float) -> float:
        """Seconds until one of the role is expected to be back, at least 1."""
        mean_s = self._mean_s.get(role, _ASSUMED_S)
        since_s = [away.since_s for away in self._away.values() if away.role == role]
        if not since_s:
            return mean_s
        return max(min(since_s) + mean_s - now_s, _SHORTEST_S)
