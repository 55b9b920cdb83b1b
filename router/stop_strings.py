"""Finds stop strings in text that arrives in pieces. Pure.

Each stop string has a Knuth-Morris-Pratt state: how many of its characters the text now
ends with. Text is held back only while it may still become a stop string that is not
shown, and the result does not depend on where the pieces are cut. The first string to be
complete wins; of several complete at the same character, the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matched:
    """Text that may be sent, and the stop string that was found, if any."""

    text: str
    stop_string: str | None = None


class StopStringMatcher:
    """Call `push` until it reports a stop string; `flush` at the end."""

    def __init__(self, stop_strings: Sequence[str], *, shows_them: bool = False) -> None:
        """`shows_them`: the stop string is part of the text, so nothing is held back."""
        self._patterns = [_Pattern(text) for text in stop_strings]
        self._shows_them = shows_them
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> Matched:
        """Takes more text. Must not be called after a match.

        A stop string that is complete in a text that may not stop the answer is passed over.
        """
        if not self._patterns:
            return Matched(text)
        seen = self._held + text
        for offset, character in enumerate(text, start=len(self._held) + 1):
            found = self._advance(character)
            if found is not None and may_stop:
                self._held = ""
                return Matched(seen[: offset if self._shows_them else offset - len(found)], found)
        num_held = 0 if self._shows_them else max(each.num_matched for each in self._patterns)
        cut = len(seen) - num_held
        self._held = seen[cut:]
        return Matched(seen[:cut])

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        complete = [pattern.text for pattern in self._patterns if pattern.advance(character)]
        return max(complete, key=len, default=None)


class _Pattern:
    __slots__ = ("_borders", "num_matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._borders = _borders(text)

    def advance(self, character: str) -> bool:
        """Takes one character; returns whether the text now ends with the pattern."""
        while self.num_matched and self.text[self.num_matched] != character:
            self.num_matched = self._borders[self.num_matched - 1]
        if self.text[self.num_matched] == character:
            self.num_matched += 1
        is_complete = self.num_matched == len(self.text)
        if is_complete:  # the next match may overlap with this one
            self.num_matched = self._borders[-1]
        return is_complete


def _borders(text: str) -> list[int]:
    """Returns for each prefix the length of its longest proper prefix that is its suffix."""
    borders = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length - 1]
        if text[index] == text[length]:
            length += 1
        borders[index] = length
    return borders
