"""What conversations of a gateway take together, and how room is made for more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from stream2llm.api.errors import OverloadedError

# Frees so many characters, or as many as can be freed.
GiveWay = Callable[[int], Awaitable[None]]


class Memory:
    """Counts the characters of one caller, or of all: what is remembered, and what waits."""

    def __init__(
        self,
        max_chars: int,
        whose: str,
        give_way: GiveWay | None = None,
        part_of: Memory | None = None,
    ) -> None:
        """More than `max_chars` are refused where `give_way` does not help.

        `whose` conversations they are stands in the refusal. What counts here counts in
        `part_of` too.
        """
        self._max_chars = max_chars
        self._whose = whose
        self.give_way = give_way
        self._part_of = part_of
        self._num_chars = 0

    @property
    def num_chars(self) -> int:
        """Characters at present."""
        return self._num_chars

    def add(self, num_chars: int) -> None:
        """Counts characters that came; negative: that are gone."""
        self._num_chars += num_chars
        if self._part_of is not None:
            self._part_of.add(num_chars)

    async def ensure(self, num_chars: int) -> None:
        """Returns when there is room for so many more; raises OverloadedError if there is none."""
        if self._over(num_chars) > 0 and self.give_way is not None:
            await self.give_way(self._over(num_chars))
        if self._over(num_chars) > 0:
            raise OverloadedError(
                f"the conversations of {self._whose} have more than {self._max_chars} characters",
                reason="STATE_TOO_LARGE",
            )
        if self._part_of is not None:
            await self._part_of.ensure(num_chars)

    def _over(self, num_chars: int) -> int:
        return self._num_chars + num_chars - self._max_chars
