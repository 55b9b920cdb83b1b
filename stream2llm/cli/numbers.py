"""Numbers that options take."""

from __future__ import annotations

from math import isfinite

import typer


def finite(value: float) -> float:
    """For `callback=`: the value, unless it is no number; the bounds of an option let NaN pass."""
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value
