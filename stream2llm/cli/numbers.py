"""Numbers that options take."""

from __future__ import annotations

from math import isfinite

import typer


def finite(value: float) -> float:
    """For `callback=`: the value, unless it is infinite or no number, which a lower bound lets pass."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value
