"""Which blocks an engine's prefix cache has, and how that changed lately. Pure.

EngineCore sends with each step the hashes that entered and left the cache (cache_events.py); the
worker's process keeps the log, from which its routers get their reports (cache_service.py). It holds the
latest changes only: who has missed older ones gets a full report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stream2llm.serving.sessions.block_hashes import from_wire, num_hashes, to_wire

# Key of EngineCore's part in vLLM's statistics of a step.
CACHE_KEY = "stream2llm_cache"
_MAX_LOGGED_HASHES = 65_536


@dataclass(frozen=True, slots=True)
class CacheChange:
    """What changed in one step; hashes as in `block_hashes`, no one in both."""

    added: bytes = b""
    removed: bytes = b""
    # Everything that was held before has gone.
    is_cleared: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return asdict(self)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> CacheChange:
        """Inverse of `to_wire`."""
        return cls(**raw)

    @property
    def num_hashes(self) -> int:
        """How many hashes it has."""
        return num_hashes(self.added) + num_hashes(self.removed)


class BlockCounts:
    """Counts the blocks of each hash, of which the cache may hold several, and notes the changes."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        # What changed since the last `take`, with whether it was held then.
        self._touched: dict[int, bool] = {}
        self._is_cleared = False

    def add(self, hashes: Iterable[int]) -> None:
        """A block of each has entered the cache."""
        for each in hashes:
            count = self.counts.get(each, 0)
            self._touched.setdefault(each, count > 0)
            self.counts[each] = count + 1

    def remove(self, hashes: Iterable[int]) -> None:
        """A block of each has left it."""
        for each in hashes:
            count = self.counts.pop(each, 0)
            self._touched.setdefault(each, count > 0)
            if count > 1:
                self.counts[each] = count - 1

    def clear(self) -> None:
        """The cache was emptied."""
        self.counts.clear()
        self._touched.clear()
        self._is_cleared = True

    def take(self) -> CacheChange | None:
        """Returns what has changed since the last time; None if nothing has."""
        changed = [
            (each, was) for each, was in self._touched.items() if was != (each in self.counts)
        ]
        is_cleared, self._is_cleared = self._is_cleared, False
        self._touched.clear()
        if not changed and not is_cleared:
            return None
        added = to_wire(each for each, was in changed if not was)
        return CacheChange(added, to_wire(each for each, was in changed if was), is_cleared)


class CacheLog:
    """The hashes that the cache holds, and the latest changes by version."""

    def __init__(self, max_logged_hashes: int = _MAX_LOGGED_HASHES) -> None:
        self.held: set[int] = set()
        # Counts the changes.
        self.version = 0
        # Called after each change.
        self.on_change: set[Callable[[], object]] = set()
        self._max_logged_hashes = max_logged_hashes
        self._changes: deque[CacheChange] = deque()
        self._num_logged_hashes = 0

    def apply(self, change: CacheChange) -> None:
        """Takes the engine's next change."""
        if change.is_cleared:
            self.held.clear()
        self.held.difference_update(from_wire(change.removed, "removed"))
        self.held.update(from_wire(change.added, "added"))
        self.version += 1
        self._log(change)
        for call in tuple(self.on_change):
            call()

    def since(self, version: int) -> tuple[CacheChange, ...] | None:
        """Returns the changes after a version; None where they are not all there any more."""
        num_missed = self.version - version
        if num_missed > len(self._changes):
            return None
        return tuple(self._changes)[len(self._changes) - num_missed :]

    def _log(self, change: CacheChange) -> None:
        if change.is_cleared:  # who has missed it gets a full report
            self._changes.clear()
            self._num_logged_hashes = 0
            return
        self._changes.append(change)
        self._num_logged_hashes += change.num_hashes
        while self._num_logged_hashes > self._max_logged_hashes:
            self._num_logged_hashes -= self._changes.popleft().num_hashes
