"""Request ids in the order of their rank keys."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList

from prefill_worker.policy import RankKey

_Place = tuple[RankKey, str]


class RankOrder:
    """Request ids by key; equal keys by id."""

    def __init__(self) -> None:
        self._places: SortedList[_Place] = SortedList()
        self.key_of: dict[str, RankKey] = {}

    def __len__(self) -> int:
        return len(self.key_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.key_of

    def __iter__(self) -> Iterator[str]:
        return (request_id for _, request_id in self._places)

    def __reversed__(self) -> Iterator[str]:
        return (request_id for _, request_id in reversed(self._places))

    @property
    def first_key(self) -> RankKey:
        """The lowest key; the order must not be empty."""
        key: RankKey = self._places[0][0]
        return key

    def place(self, request_id: str, key: RankKey | None) -> None:
        """Moves a request id to the position of `key`; None removes it."""
        old = self.key_of.pop(request_id, None)
        if old is not None:
            self._places.remove((old, request_id))
        if key is not None:
            self._places.add((key, request_id))
            self.key_of[request_id] = key
