"""How long to wait before the next of several tries. Pure."""

from __future__ import annotations

# Before the second try; before each further one twice as long as before the last.
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


def pause_s(num_tries: int) -> float:
    """Seconds before the `num_tries`th try; none before the first."""
    if num_tries <= 1:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** min(num_tries - 2, 30), _LONGEST_PAUSE_S)
